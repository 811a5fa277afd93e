//! `libav.h`, line by line.

use std::ffi::{c_char, c_int, c_void};

pub(super) const AGAIN: c_int = 1;
pub(super) const END: c_int = 2;
pub(super) const NO_TIME: i64 = i64::MIN;

pub(super) const IS_NO_DECODER: c_int = 0;
pub(super) const IS_STOPPED: c_int = 1;
pub(super) const IS_NOT_SUPPORTED: c_int = 2;
pub(super) const IS_NO_VIDEO: c_int = 3;

pub(super) const PLANAR: i32 = 0;
pub(super) const SEMI_PLANAR: i32 = 1;
pub(super) const PLANAR_GBR: i32 = 2;
pub(super) const GRAY: i32 = 3;
pub(super) const PACKED_RGB: i32 = 4;

/// Opaque.
#[repr(C)]
pub(super) struct Input {
    _private: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub(super) struct Decoder {
    _private: [u8; 0],
}

#[repr(C)]
pub(super) struct Stream {
    pub(super) codec: *const c_char,
    pub(super) container: *const c_char,
    pub(super) extradata: *const u8,
    pub(super) extradata_size: i64,
    pub(super) n_frames: i64,
    pub(super) start_ns: i64,
    pub(super) duration_ns: i64,
    pub(super) fps: [i32; 2],
    pub(super) size: [i32; 2],
    pub(super) sar: [i32; 2],
    pub(super) matrix: [i32; 9],
    pub(super) may_reorder: i32,
    pub(super) is_interlaced: i32,
    pub(super) is_untimed: i32,
    pub(super) is_intra_only: i32,
}

#[repr(C)]
pub(super) struct Packet {
    pub(super) data: *const u8,
    pub(super) size: i64,
    pub(super) pts_ns: i64,
    pub(super) dts_ns: i64,
    pub(super) duration_ns: i64,
    pub(super) is_key: i32,
    pub(super) is_discarded: i32,
    pub(super) is_corrupt: i32,
    pub(super) is_encrypted: i32,
}

#[repr(C)]
pub(super) struct Picture {
    pub(super) planes: [*const u8; 3],
    pub(super) strides: [i64; 3],
    pub(super) ordinal: i64,
    pub(super) size: [i32; 2],
    pub(super) layout: i32,
    pub(super) subsampling: [i32; 2],
    pub(super) depth: i32,
    pub(super) offsets: [i32; 3],
    pub(super) step: i32,
    pub(super) matrix: i32,
    pub(super) range: i32,
    pub(super) primaries: i32,
    pub(super) chroma_location: i32,
    pub(super) sar: [i32; 2],
    pub(super) is_interlaced: i32,
    pub(super) is_top_field_first: i32,
    pub(super) is_rgb: i32,
    pub(super) is_offset: i32,
}

unsafe extern "C" {
    pub(super) fn clipmill_av_open(
        data: *const u8,
        size: i64,
        stop: *const u8,
        format: *const c_char,
        out: *mut *mut Input,
    ) -> c_int;
    pub(super) fn clipmill_av_close(input: *mut Input);
    pub(super) fn clipmill_av_describe(input: *const Input, out: *mut Stream);
    pub(super) fn clipmill_av_position(input: *const Input) -> i64;

    pub(super) fn clipmill_av_read(input: *mut Input, packet: *mut c_void, out: *mut Packet) -> c_int;
    pub(super) fn clipmill_av_packet_new() -> *mut c_void;
    pub(super) fn clipmill_av_packet_free(packet: *mut c_void);
    pub(super) fn clipmill_av_frame_new() -> *mut c_void;
    pub(super) fn clipmill_av_frame_free(frame: *mut c_void);

    pub(super) fn clipmill_av_decoder_open(
        input: *const Input,
        threads: c_int,
        reorder: c_int,
        out: *mut *mut Decoder,
    ) -> c_int;
    pub(super) fn clipmill_av_decoder_close(decoder: *mut Decoder);
    pub(super) fn clipmill_av_decoder_name(decoder: *const Decoder) -> *const c_char;
    pub(super) fn clipmill_av_complaint(decoder: *const Decoder) -> *const c_char;
    pub(super) fn clipmill_av_forgive(decoder: *mut Decoder);
    pub(super) fn clipmill_av_send(
        decoder: *mut Decoder,
        packet: *const c_void,
        offset: i64,
        size: i64,
        ordinal: i64,
        skip_nonref: c_int,
    ) -> c_int;
    pub(super) fn clipmill_av_receive(decoder: *mut Decoder, frame: *mut c_void) -> c_int;
    pub(super) fn clipmill_av_flush(decoder: *mut Decoder);

    pub(super) fn clipmill_av_picture_of(frame: *const c_void, out: *mut Picture);
    pub(super) fn clipmill_av_convert(frame: *const c_void, out: *mut *mut c_void) -> c_int;

    pub(super) fn clipmill_av_message(error: c_int, out: *mut c_char, size: i64);
    pub(super) fn clipmill_av_is(error: c_int, kind: c_int) -> c_int;
    pub(super) fn clipmill_av_versions(format: *mut u32, codec: *mut u32);
    #[cfg(test)]
    pub(super) fn clipmill_av_sizes(sizes: *mut i64);
}

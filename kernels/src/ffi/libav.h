/* What `libav.c` offers to `libav/sys.rs`, which repeats every line of it. Only fixed-size integers
 * cross the border, so the layout does not change with the release of FFmpeg. */
#ifndef CLIPMILL_LIBAV_H
#define CLIPMILL_LIBAV_H

#include <stdint.h>

/* Results besides 0 and FFmpeg's negative errors. */
enum { CLIPMILL_AV_AGAIN = 1, CLIPMILL_AV_END = 2 };

/* A time that is not known. */
#define CLIPMILL_AV_NO_TIME INT64_MIN

typedef struct clipmill_av_input clipmill_av_input;
typedef struct clipmill_av_decoder clipmill_av_decoder;

typedef struct {
    const char *codec;     /* static: "h264" */
    const char *container; /* static, with commas: "mov,mp4,m4a" */
    const uint8_t *extradata; /* of the codec, `extradata_size` bytes, as long as the input is open */
    int64_t extradata_size;
    int64_t n_frames;      /* by the container, 0 if it does not say */
    int64_t start_ns;      /* of the whole file, where its clock does not start at 0 */
    int64_t duration_ns;   /* of the stream or the file, 0 if unknown */
    int32_t fps_num, fps_den;
    int32_t width, height;
    int32_t sar_num, sar_den;
    int32_t matrix[9]; /* display matrix, all 0 if there is none */
    int32_t may_reorder;  /* by its codec */
    int32_t is_interlaced, is_untimed; /* pictures are fields; the container has no times */
    int32_t is_intra_only;
} clipmill_av_stream;

typedef struct {
    const uint8_t *data;
    int64_t size;
    int64_t pts_ns, dts_ns; /* or CLIPMILL_AV_NO_TIME */
    int64_t duration_ns;    /* 0 if unknown */
    int32_t is_key, is_discarded, is_corrupt, is_encrypted;
} clipmill_av_packet;

enum {
    CLIPMILL_AV_PLANAR,
    CLIPMILL_AV_SEMI_PLANAR,
    CLIPMILL_AV_PLANAR_GBR,
    CLIPMILL_AV_GRAY,
    CLIPMILL_AV_PACKED_RGB,
    CLIPMILL_AV_OTHER, /* nothing of the below is set: convert first */
};

typedef struct {
    const uint8_t *planes[3];
    int64_t strides[3]; /* negative where rows lie bottom up */
    int64_t ordinal;    /* of the packet it came from */
    int32_t width, height;
    int32_t layout, subsampling_x, subsampling_y, depth;
    int32_t offsets[3], step; /* of packed RGB */
    int32_t matrix, range, primaries, chroma_location;
    int32_t sar_num, sar_den;
    int32_t is_interlaced, is_top_field_first, is_rgb;
    int32_t is_offset; /* what is shown begins inside of the decoder's picture */
} clipmill_av_picture;

/* `stop` is read atomically while the input reads; not 0 makes reading fail. `data` and `stop` outlive
 * the input. `format` is a demuxer's name or NULL. */
int clipmill_av_open(const uint8_t *data, int64_t size, const uint8_t *stop, const char *format,
                     clipmill_av_input **out);
void clipmill_av_close(clipmill_av_input *input);
void clipmill_av_describe(const clipmill_av_input *input, clipmill_av_stream *out);
int64_t clipmill_av_position(const clipmill_av_input *input);

/* Packets are AVPacket, frames AVFrame. */
int clipmill_av_read(clipmill_av_input *input, void *packet, clipmill_av_packet *out);
void *clipmill_av_packet_new(void);
void clipmill_av_packet_free(void *packet);
void *clipmill_av_frame_new(void);
void clipmill_av_frame_free(void *frame);

/* `reorder` is how many frames a frame may overtake, or -1. */
int clipmill_av_decoder_open(const clipmill_av_input *input, int threads, int reorder,
                             clipmill_av_decoder **out);
void clipmill_av_decoder_close(clipmill_av_decoder *decoder);
const char *clipmill_av_decoder_name(const clipmill_av_decoder *decoder);
/* The first error that it logged, also of damage that it then conceals; NULL if there was none since it
 * was forgiven. As long as the decoder is open. */
const char *clipmill_av_complaint(const clipmill_av_decoder *decoder);
void clipmill_av_forgive(clipmill_av_decoder *decoder);
/* Sends `size` of the packet's bytes, from `offset`. A NULL packet asks for what is held back. */
int clipmill_av_send(clipmill_av_decoder *decoder, const void *packet, int64_t offset, int64_t size,
                     int64_t ordinal, int skip_nonref);
int clipmill_av_receive(clipmill_av_decoder *decoder, void *frame);
void clipmill_av_flush(clipmill_av_decoder *decoder);

void clipmill_av_picture_of(const void *frame, clipmill_av_picture *out);
/* To a new frame of a kind that is not CLIPMILL_AV_OTHER and not bottom up. */
int clipmill_av_convert(const void *frame, void **out);

/* What an error means; FFmpeg's own last complaint in this thread if there was one. */
void clipmill_av_message(int error, char *out, int64_t size);
int clipmill_av_is(int error, int kind);
enum {
    CLIPMILL_AV_IS_NO_DECODER,
    CLIPMILL_AV_IS_STOPPED,
    CLIPMILL_AV_IS_NOT_SUPPORTED,
    CLIPMILL_AV_IS_NO_VIDEO,
};
/* Versions of libavformat and libavcodec, as `AV_VERSION_INT`. */
void clipmill_av_versions(uint32_t *format, uint32_t *codec);
void clipmill_av_sizes(int64_t sizes[3]);

#endif

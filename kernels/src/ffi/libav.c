/* FFmpeg's libraries, flattened to plain structs.
 *
 * FFmpeg's structs change with every major release. This file is compiled against the headers of the
 * machine, so what Rust sees stays the same. It decides nothing: it opens, reads, decodes, describes.
 */
#include "libav.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avstring.h>
#include <libavutil/imgutils.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <string.h>

#define READ_BYTES (64 << 10)
/* Samples of a picture, at most: four times 8K. More is an attack, or not for this machine. */
#define CLIPMILL_AV_MOST_PIXELS (1 << 27)

struct clipmill_av_input {
    const uint8_t *data;
    int64_t size, position;
    const uint8_t *stop;
    AVFormatContext *format;
    AVStream *stream;
};

struct clipmill_av_decoder {
    AVCodecContext *context;
    /* How many, and the first. Only who counts the first one writes it; decoders have threads. */
    int64_t complaints;
    char complaint[160];
};

/* Messages. */

static _Thread_local char complaint[256];

/* FFmpeg's own choice. It marks the contexts that are ours: GStreamer decodes in this process as well. */
static enum AVPixelFormat get_format(AVCodecContext *context, const enum AVPixelFormat *formats) {
    return avcodec_default_get_format(context, formats);
}

static void write_line(char *to, size_t size, const char *format, va_list args) {
    vsnprintf(to, size, format, args);
    to[strcspn(to, "\r\n")] = 0;
}

/* FFmpeg tells the cause in its log, not in its error: "moov atom not found". Damage that a decoder
 * conceals is told nowhere else. */
static void on_log(void *context, int level, const char *format, va_list args) {
    if (level > AV_LOG_ERROR)
        return;
    if (context && *(const AVClass **)context == avcodec_get_class() &&
        ((AVCodecContext *)context)->get_format == get_format) {
        clipmill_av_decoder *decoder = ((AVCodecContext *)context)->opaque;
        if (!__atomic_fetch_add(&decoder->complaints, 1, __ATOMIC_RELAXED)) {
            va_list again;
            va_copy(again, args);
            write_line(decoder->complaint, sizeof decoder->complaint, format, again);
            va_end(again);
        }
    }
    write_line(complaint, sizeof complaint, format, args);
}

static void quieten(void) {
    av_log_set_callback(on_log);
    complaint[0] = 0;
}

void clipmill_av_message(int error, char *out, int64_t size) {
    if (error == AVERROR(EACCES))
        snprintf(out, (size_t)size, "refers to other files, as playlists do");
    else if (av_strerror(error, out, (size_t)size) < 0)
        snprintf(out, (size_t)size, "error %d", error);
    if (complaint[0]) {
        size_t used = strlen(out);
        snprintf(out + used, (size_t)size - used, ": %s", complaint);
        complaint[0] = 0;
    }
}

int clipmill_av_is(int error, int kind) {
    switch (kind) {
    case CLIPMILL_AV_IS_NO_DECODER:
        return error == AVERROR_DECODER_NOT_FOUND;
    case CLIPMILL_AV_IS_STOPPED:
        return error == AVERROR_EXIT;
    case CLIPMILL_AV_IS_NO_VIDEO:
        return error == AVERROR_STREAM_NOT_FOUND;
    default:
        return error == AVERROR_PATCHWELCOME || error == AVERROR(ENOSYS) || error == AVERROR(EACCES);
    }
}

void clipmill_av_versions(uint32_t *format, uint32_t *codec) {
    *format = avformat_version();
    *codec = avcodec_version();
}

void clipmill_av_sizes(int64_t sizes[3]) {
    sizes[0] = sizeof(clipmill_av_stream);
    sizes[1] = sizeof(clipmill_av_packet);
    sizes[2] = sizeof(clipmill_av_picture);
}

/* Input. */

static int read_bytes(void *opaque, uint8_t *to, int n) {
    clipmill_av_input *in = opaque;
    int64_t left = in->size - in->position;
    if (__atomic_load_n(in->stop, __ATOMIC_RELAXED))
        return AVERROR_EXIT;
    if (left <= 0)
        return AVERROR_EOF;
    if (n > left)
        n = (int)left;
    memcpy(to, in->data + in->position, (size_t)n);
    in->position += n;
    return n;
}

static int64_t seek_bytes(void *opaque, int64_t offset, int whence) {
    clipmill_av_input *in = opaque;
    switch (whence & ~AVSEEK_FORCE) {
    case AVSEEK_SIZE:
        return in->size;
    case SEEK_CUR:
        offset += in->position;
        break;
    case SEEK_END:
        offset += in->size;
        break;
    }
    if (offset < 0)
        return AVERROR(EINVAL);
    return in->position = offset;
}

static int is_stopped(void *opaque) {
    clipmill_av_input *in = opaque;
    return __atomic_load_n(in->stop, __ATOMIC_RELAXED);
}

/* Playlists: what they name is another file, or another host. */
static int is_list(const AVInputFormat *format) {
    static const char *const lists[] = {"concat", "hls", "dash", "sdp", "rtsp", "rtp", "imf", "image2", "tty"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (av_match_name(lists[i], format->name))
            return 1;
    return format->flags & AVFMT_NOFILE;
}

/* A clip is one file: references to other files or hosts stay closed. */
static int open_nothing(AVFormatContext *s, AVIOContext **pb, const char *url, int flags, AVDictionary **o) {
    (void)s, (void)pb, (void)url, (void)flags, (void)o;
    return AVERROR(EACCES);
}

/* Whether the header alone tells all that a decoder needs. */
static int is_described(const AVFormatContext *format, const AVStream *stream) {
    const char *name = format->iformat->name;
    int is_avi = !strcmp(name, "avi");
    if (!stream || (!is_avi && strncmp(name, "mov,", 4) && strncmp(name, "matroska", 8)))
        return 0;
    /* AVI has no presentation times that would tell how far H.264 reorders its frames. */
    return stream->codecpar->codec_id != AV_CODEC_ID_NONE && stream->codecpar->width > 0 &&
           !(is_avi && stream->codecpar->codec_id == AV_CODEC_ID_H264);
}

static void choose_stream(clipmill_av_input *in) {
    in->stream = NULL;
    for (unsigned i = 0; i < in->format->nb_streams; i++) {
        AVStream *s = in->format->streams[i];
        /* A cover picture is no video. */
        if (s->codecpar->codec_type != AVMEDIA_TYPE_VIDEO || s->disposition & AV_DISPOSITION_ATTACHED_PIC)
            continue;
        if (!in->stream)
            in->stream = s;
    }
}

/* It decodes some frames of every stream, which the limit must bind as well. */
static int find_info(AVFormatContext *format) {
    unsigned n = format->nb_streams;
    AVDictionary **options = n ? av_calloc(n, sizeof *options) : NULL;
    for (unsigned i = 0; options && i < n; i++)
        av_dict_set_int(&options[i], "max_pixels", CLIPMILL_AV_MOST_PIXELS, 0);
    int error = avformat_find_stream_info(format, options);
    for (unsigned i = 0; options && i < n; i++)
        av_dict_free(&options[i]);
    av_free(options);
    return error;
}

int clipmill_av_open(const uint8_t *data, int64_t size, const uint8_t *stop, const char *format,
                     clipmill_av_input **out) {
    int error = AVERROR(ENOMEM), is_open = 0;
    quieten();
    clipmill_av_input *in = av_mallocz(sizeof *in);
    uint8_t *buffer = av_malloc(READ_BYTES);
    AVIOContext *io = NULL;
    if (!in || !buffer)
        goto fail;
    in->data = data, in->size = size, in->stop = stop;
    io = avio_alloc_context(buffer, READ_BYTES, 0, in, read_bytes, NULL, seek_bytes);
    in->format = avformat_alloc_context();
    if (!io || !in->format)
        goto fail;
    in->format->pb = io;
    in->format->io_open = open_nothing;
    in->format->protocol_whitelist = av_strdup("");
    in->format->interrupt_callback = (AVIOInterruptCB){is_stopped, in};
    const AVInputFormat *demuxer = format ? av_find_input_format(format) : NULL;
    if (!demuxer) {
        error = av_probe_input_buffer2(io, &demuxer, "", NULL, 0, 0);
        if (error >= 0 && is_list(demuxer))
            error = AVERROR(EACCES);
        if (error < 0)
            goto fail;
    }
    /* It frees the context when it fails. */
    error = avformat_open_input(&in->format, NULL, demuxer, NULL);
    if (error < 0)
        goto fail;
    is_open = 1;
    choose_stream(in);
    if (!is_described(in->format, in->stream)) {
        error = find_info(in->format);
        if (error < 0)
            goto fail;
        choose_stream(in);
    }
    error = AVERROR_STREAM_NOT_FOUND;
    if (!in->stream)
        goto fail;
    for (unsigned i = 0; i < in->format->nb_streams; i++)
        if (in->format->streams[i] != in->stream)
            in->format->streams[i]->discard = AVDISCARD_ALL;
    *out = in;
    return 0;
fail:
    if (is_open)
        avformat_close_input(&in->format);
    else if (in)
        avformat_free_context(in->format);
    if (io) {
        av_freep(&io->buffer);
        avio_context_free(&io);
    } else {
        av_free(buffer);
    }
    av_free(in);
    return error;
}

void clipmill_av_close(clipmill_av_input *in) {
    AVIOContext *io = in->format->pb;
    avformat_close_input(&in->format);
    av_freep(&io->buffer);
    avio_context_free(&io);
    av_free(in);
}

int64_t clipmill_av_position(const clipmill_av_input *in) { return in->position; }

static int64_t nanos(int64_t time, AVRational base) {
    if (time == AV_NOPTS_VALUE || base.num <= 0 || base.den <= 0)
        return CLIPMILL_AV_NO_TIME;
    return av_rescale_q(time, base, (AVRational){1, 1000000000});
}

static const int32_t *display_matrix(const AVStream *stream) {
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
    const AVPacketSideData *data = av_packet_side_data_get(
        stream->codecpar->coded_side_data, stream->codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    return data && data->size >= 9 * sizeof(int32_t) ? (const int32_t *)data->data : NULL;
#else
    size_t size = 0;
    const uint8_t *data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
    return data && size >= 9 * sizeof(int32_t) ? (const int32_t *)data : NULL;
#endif
}

void clipmill_av_describe(const clipmill_av_input *in, clipmill_av_stream *out) {
    const AVStream *stream = in->stream;
    const AVRational micros = {1, AV_TIME_BASE};
    AVRational fps = stream->avg_frame_rate.num ? stream->avg_frame_rate : stream->r_frame_rate;
    AVRational sar = stream->sample_aspect_ratio.num ? stream->sample_aspect_ratio
                                                     : stream->codecpar->sample_aspect_ratio;
    const int32_t *matrix = display_matrix(stream);
    memset(out, 0, sizeof *out);
    out->codec = avcodec_get_name(stream->codecpar->codec_id);
    out->container = in->format->iformat->name;
    out->extradata = stream->codecpar->extradata;
    out->extradata_size = stream->codecpar->extradata_size;
    out->n_frames = stream->nb_frames;
    int64_t start = nanos(in->format->start_time, micros);
    out->start_ns = start == CLIPMILL_AV_NO_TIME ? 0 : start;
    int64_t duration = nanos(stream->duration, stream->time_base);
    if (duration == CLIPMILL_AV_NO_TIME)
        duration = nanos(in->format->duration, micros);
    out->duration_ns = duration == CLIPMILL_AV_NO_TIME ? 0 : duration;
    out->fps_num = fps.num, out->fps_den = fps.den;
    out->width = stream->codecpar->width, out->height = stream->codecpar->height;
    out->sar_num = sar.num, out->sar_den = sar.den;
    const AVCodecDescriptor *codec = avcodec_descriptor_get(stream->codecpar->codec_id);
    out->may_reorder = !codec || codec->props & AV_CODEC_PROP_REORDER;
    out->is_intra_only = codec && codec->props & AV_CODEC_PROP_INTRA_ONLY;
    out->is_untimed = !!(in->format->iformat->flags & AVFMT_NOTIMESTAMPS);
    out->is_interlaced = stream->codecpar->field_order > AV_FIELD_PROGRESSIVE;
    if (matrix)
        memcpy(out->matrix, matrix, sizeof out->matrix);
}

/* Packets. */

void *clipmill_av_packet_new(void) { return av_packet_alloc(); }

void clipmill_av_packet_free(void *packet) {
    AVPacket *p = packet;
    av_packet_free(&p);
}

int clipmill_av_read(clipmill_av_input *in, void *packet, clipmill_av_packet *out) {
    AVPacket *p = packet;
    int error;
    do {
        av_packet_unref(p);
        error = av_read_frame(in->format, p);
    } while (error == AVERROR(EAGAIN) || (error >= 0 && p->stream_index != in->stream->index));
    if (error == AVERROR_EOF)
        return CLIPMILL_AV_END;
    if (error < 0)
        return error;
    AVRational base = in->stream->time_base;
    int64_t duration = nanos(p->duration, base);
    out->data = p->data;
    out->size = p->size;
    out->pts_ns = nanos(p->pts, base);
    out->dts_ns = nanos(p->dts, base);
    out->duration_ns = duration == CLIPMILL_AV_NO_TIME ? 0 : duration;
    out->is_key = !!(p->flags & AV_PKT_FLAG_KEY);
    out->is_discarded = !!(p->flags & AV_PKT_FLAG_DISCARD);
    out->is_corrupt = !!(p->flags & AV_PKT_FLAG_CORRUPT);
    out->is_encrypted = av_packet_get_side_data(p, AV_PKT_DATA_ENCRYPTION_INFO, NULL) != NULL;
    return 0;
}

/* Decoding. */

int clipmill_av_decoder_open(const clipmill_av_input *in, int threads, int reorder,
                             clipmill_av_decoder **out) {
    const AVCodecParameters *parameters = in->stream->codecpar;
    const AVCodec *codec = avcodec_find_decoder(parameters->codec_id);
    quieten();
    if (!codec)
        return AVERROR_DECODER_NOT_FOUND;
    clipmill_av_decoder *decoder = av_mallocz(sizeof *decoder);
    AVCodecContext *context = avcodec_alloc_context3(codec);
    int error = AVERROR(ENOMEM);
    if (!decoder || !context)
        goto fail;
    error = avcodec_parameters_to_context(context, parameters);
    if (error < 0)
        goto fail;
    context->pkt_timebase = in->stream->time_base;
    context->thread_count = threads;
    context->opaque = decoder;
    context->get_format = get_format;
    context->max_pixels = CLIPMILL_AV_MOST_PIXELS;
    if (reorder >= 0)
        context->has_b_frames = reorder;
    error = avcodec_open2(context, codec, NULL);
    if (error < 0)
        goto fail;
    decoder->context = context;
    *out = decoder;
    return 0;
fail:
    avcodec_free_context(&context);
    av_free(decoder);
    return error;
}

void clipmill_av_decoder_close(clipmill_av_decoder *decoder) {
    avcodec_free_context(&decoder->context);
    av_free(decoder);
}

const char *clipmill_av_decoder_name(const clipmill_av_decoder *decoder) {
    return decoder->context->codec->name;
}

const char *clipmill_av_complaint(const clipmill_av_decoder *decoder) {
    return __atomic_load_n(&decoder->complaints, __ATOMIC_RELAXED) ? decoder->complaint : NULL;
}

void clipmill_av_forgive(clipmill_av_decoder *decoder) {
    __atomic_store_n(&decoder->complaints, 0, __ATOMIC_RELAXED);
}

int clipmill_av_send(clipmill_av_decoder *decoder, const void *packet, int64_t offset, int64_t size,
                     int64_t ordinal, int skip_nonref) {
    AVCodecContext *context = decoder->context;
    context->skip_frame = skip_nonref ? AVDISCARD_NONREF : AVDISCARD_DEFAULT;
    AVPacket *copy = NULL;
    if (packet) {
        /* A reference to the same bytes. Its times tell which packet a frame came from. */
        copy = av_packet_clone(packet);
        if (!copy)
            return AVERROR(ENOMEM);
        copy->pts = copy->dts = ordinal;
        /* What decoders read past the end is the rest of the packet, or its padding. */
        if (offset < 0 || size < 0 || offset + size > copy->size) {
            av_packet_free(&copy);
            return AVERROR(EINVAL);
        }
        copy->data += offset;
        copy->size = (int)size;
    }
    int error = avcodec_send_packet(context, copy);
    av_packet_free(&copy);
    return error == AVERROR(EAGAIN) ? CLIPMILL_AV_AGAIN : error == AVERROR_EOF ? CLIPMILL_AV_END : error;
}

int clipmill_av_receive(clipmill_av_decoder *decoder, void *frame) {
    int error = avcodec_receive_frame(decoder->context, frame);
    return error == AVERROR(EAGAIN) ? CLIPMILL_AV_AGAIN : error == AVERROR_EOF ? CLIPMILL_AV_END : error;
}

void clipmill_av_flush(clipmill_av_decoder *decoder) { avcodec_flush_buffers(decoder->context); }

/* Pictures. */

void *clipmill_av_frame_new(void) { return av_frame_alloc(); }

void clipmill_av_frame_free(void *frame) {
    AVFrame *f = frame;
    av_frame_free(&f);
}

/* Fills in how the samples lie, if it is a way that the kernels read. */
static void describe_layout(enum AVPixelFormat pixels, clipmill_av_picture *out) {
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(pixels);
    const uint64_t odd = AV_PIX_FMT_FLAG_BE | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BITSTREAM |
                         AV_PIX_FMT_FLAG_HWACCEL | AV_PIX_FMT_FLAG_BAYER | AV_PIX_FMT_FLAG_FLOAT;
    out->layout = CLIPMILL_AV_OTHER;
    if (!d)
        return;
    out->is_rgb = !!(d->flags & AV_PIX_FMT_FLAG_RGB);
    if (d->flags & odd || pixels == AV_PIX_FMT_XYZ12LE)
        return;
    const AVComponentDescriptor *c = d->comp;
    int depth = c[0].depth + c[0].shift, bytes = depth > 8 ? 2 : 1;
    int n_colours = d->nb_components - !!(d->flags & AV_PIX_FMT_FLAG_ALPHA);
    if (c[0].depth < 8 || depth > 16)
        return;
    for (int i = 0; i < n_colours; i++)
        if (c[i].depth != c[0].depth || c[i].shift != c[0].shift)
            return;
    out->depth = depth;
    out->subsampling_x = d->log2_chroma_w, out->subsampling_y = d->log2_chroma_h;
    if (n_colours == 1 && c[0].step == bytes) {
        out->layout = CLIPMILL_AV_GRAY;
    } else if (n_colours != 3) {
        return;
    } else if (out->is_rgb && c[0].plane == 2 && c[1].plane == 0 && c[2].plane == 1 && c[0].step == bytes) {
        out->layout = CLIPMILL_AV_PLANAR_GBR;
    } else if (out->is_rgb && depth == 8 && c[0].plane == 0 && c[1].plane == 0 && c[2].plane == 0) {
        out->layout = CLIPMILL_AV_PACKED_RGB;
        out->step = c[0].step;
        for (int i = 0; i < 3; i++)
            out->offsets[i] = c[i].offset;
    } else if (!out->is_rgb && c[0].plane == 0 && c[1].plane == 1 && c[2].plane == 2 && c[1].step == bytes) {
        out->layout = CLIPMILL_AV_PLANAR;
    } else if (!out->is_rgb && c[0].plane == 0 && c[0].step == bytes && c[1].plane == 1 &&
               c[2].plane == 1 && c[1].offset == 0 && c[2].offset == bytes && c[1].step == 2 * bytes) {
        out->layout = CLIPMILL_AV_SEMI_PLANAR;
    }
}

void clipmill_av_picture_of(const void *frame, clipmill_av_picture *out) {
    const AVFrame *f = frame;
    memset(out, 0, sizeof *out);
    describe_layout(f->format, out);
    for (int i = 0; i < 3; i++) {
        out->planes[i] = f->data[i];
        out->strides[i] = f->linesize[i];
    }
    out->ordinal = f->pts == AV_NOPTS_VALUE ? -1 : f->pts;
    out->width = f->width, out->height = f->height;
    /* Cropping moves the planes (av_frame_apply_cropping), and forgets by how much. */
    out->is_offset = f->buf[0] && f->data[0] != f->buf[0]->data;
    out->matrix = f->colorspace;
    out->range = f->color_range;
    switch (f->format) {
    case AV_PIX_FMT_YUVJ420P:
    case AV_PIX_FMT_YUVJ422P:
    case AV_PIX_FMT_YUVJ444P:
    case AV_PIX_FMT_YUVJ440P:
    case AV_PIX_FMT_YUVJ411P:
        out->range = AVCOL_RANGE_JPEG;
    }
    out->primaries = f->color_primaries;
    out->chroma_location = f->chroma_location;
    out->sar_num = f->sample_aspect_ratio.num, out->sar_den = f->sample_aspect_ratio.den;
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
    out->is_interlaced = !!(f->flags & AV_FRAME_FLAG_INTERLACED);
    out->is_top_field_first = !!(f->flags & AV_FRAME_FLAG_TOP_FIELD_FIRST);
#else
    out->is_interlaced = f->interlaced_frame;
    out->is_top_field_first = f->top_field_first;
#endif
}

/* A plain format with at least the precision of this one. */
static enum AVPixelFormat plain(enum AVPixelFormat pixels) {
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(pixels);
    int is_deep = d && d->comp[0].depth > 8;
    if (!d || d->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BAYER) ||
        pixels == AV_PIX_FMT_XYZ12LE || pixels == AV_PIX_FMT_XYZ12BE)
        return is_deep ? AV_PIX_FMT_GBRP16LE : AV_PIX_FMT_RGB24;
    if (d->nb_components < 3)
        return is_deep ? AV_PIX_FMT_GRAY16LE : AV_PIX_FMT_GRAY8;
    if (d->log2_chroma_w == 1 && d->log2_chroma_h == 0)
        return is_deep ? AV_PIX_FMT_YUV422P16LE : AV_PIX_FMT_YUV422P;
    if (d->log2_chroma_w == 1 && d->log2_chroma_h == 1)
        return is_deep ? AV_PIX_FMT_YUV420P16LE : AV_PIX_FMT_YUV420P;
    return is_deep ? AV_PIX_FMT_YUV444P16LE : AV_PIX_FMT_YUV444P;
}

int clipmill_av_convert(const void *frame, void **out) {
    const AVFrame *from = frame;
    clipmill_av_picture picture;
    quieten();
    clipmill_av_picture_of(from, &picture);
    AVFrame *to = av_frame_alloc();
    int error = AVERROR(ENOMEM);
    if (!to)
        goto fail;
    to->width = from->width, to->height = from->height;
    to->format = picture.layout == CLIPMILL_AV_OTHER ? plain(from->format) : from->format;
    error = av_frame_get_buffer(to, 0);
    if (error >= 0)
        error = av_frame_copy_props(to, from);
    if (error < 0)
        goto fail;
    if (picture.layout != CLIPMILL_AV_OTHER) {
        error = av_frame_copy(to, from);
    } else {
        struct SwsContext *scaler =
            sws_getContext(from->width, from->height, from->format, to->width, to->height, to->format,
                           SWS_POINT | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP, NULL, NULL, NULL);
        error = AVERROR(ENOSYS);
        if (!scaler)
            goto fail;
        error = sws_scale(scaler, (const uint8_t *const *)from->data, from->linesize, 0, from->height,
                          to->data, to->linesize);
        sws_freeContext(scaler);
        /* The samples are what they were; a palette's are full range. */
        if (picture.is_rgb)
            to->color_range = AVCOL_RANGE_JPEG;
    }
    if (error < 0)
        goto fail;
    *out = to;
    return 0;
fail:
    av_frame_free(&to);
    return error;
}

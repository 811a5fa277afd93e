/* Decodes clips by libav alone, on one thread, to YUV frames that are dropped at once: what decoding costs
 * at the least. decode.py compiles and runs it as the peer `libav`, against the system's FFmpeg:
 *
 *     cc -O2 -o libav_decode libav_decode.c $(pkg-config --cflags --libs libavformat libavcodec libavutil)
 *     libav_decode decode|keyframes PASSES [--probe] CLIPS...
 *
 * Prints the same line as decode.py, a first clip to warm up not counted. The stream is not probed
 * (avformat_find_stream_info decodes some frames of each clip) unless --probe asks for it or the
 * container does not say enough to open a decoder. */

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct {
    bool keyframes_only;
    bool probes;
    AVPacket *packet;
    AVFrame *frame;
} Decode;

static void fail(const char *path, const char *what, int error)
{
    fprintf(stderr, "%s: %s: %s\n", path, what, av_err2str(error));
    exit(1);
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* The first video stream, or -1. */
static int find_video(const AVFormatContext *format)
{
    for (unsigned i = 0; i < format->nb_streams; i++)
        if (format->streams[i]->codecpar->codec_type == AVMEDIA_TYPE_VIDEO)
            return i;
    return -1;
}

static bool is_complete(const AVFormatContext *format, int video)
{
    if (video < 0)
        return false;
    const AVCodecParameters *parameters = format->streams[video]->codecpar;
    return parameters->codec_id != AV_CODEC_ID_NONE && parameters->width > 0;
}

/* Sends a packet, or NULL to flush, and drops the frames that come; returns their number. A damaged packet
 * is passed over, as players do. */
static long decode_packet(const Decode *decode, AVCodecContext *codec, const AVPacket *packet)
{
    long n_frames = 0;
    avcodec_send_packet(codec, packet);
    while (avcodec_receive_frame(codec, decode->frame) == 0) {
        n_frames++;
        av_frame_unref(decode->frame);
    }
    return n_frames;
}

static long decode_clip(const Decode *decode, const char *path)
{
    AVFormatContext *format = NULL;
    int error = avformat_open_input(&format, path, NULL, NULL);
    if (error < 0)
        fail(path, "cannot be opened", error);
    int video = find_video(format);
    if (decode->probes || !is_complete(format, video)) {
        if ((error = avformat_find_stream_info(format, NULL)) < 0)
            fail(path, "has no stream info", error);
        video = find_video(format);
    }
    if (video < 0)
        fail(path, "has no video", AVERROR_STREAM_NOT_FOUND);

    for (unsigned i = 0; i < format->nb_streams; i++)
        format->streams[i]->discard = (int)i != video ? AVDISCARD_ALL
            : decode->keyframes_only ? AVDISCARD_NONKEY : AVDISCARD_DEFAULT;
    const AVCodecParameters *parameters = format->streams[video]->codecpar;
    const AVCodec *decoder = avcodec_find_decoder(parameters->codec_id);
    if (!decoder)
        fail(path, "has a codec without a decoder", AVERROR_DECODER_NOT_FOUND);
    AVCodecContext *codec = avcodec_alloc_context3(decoder);
    if ((error = avcodec_parameters_to_context(codec, parameters)) < 0)
        fail(path, "has bad parameters", error);
    codec->thread_count = 1;
    if ((error = avcodec_open2(codec, decoder, NULL)) < 0)
        fail(path, "its decoder cannot be opened", error);

    long n_frames = 0;
    while (av_read_frame(format, decode->packet) == 0) {
        bool is_wanted = !decode->keyframes_only || decode->packet->flags & AV_PKT_FLAG_KEY;
        if (decode->packet->stream_index == video && is_wanted)
            n_frames += decode_packet(decode, codec, decode->packet);
        av_packet_unref(decode->packet);
    }
    n_frames += decode_packet(decode, codec, NULL);

    avcodec_free_context(&codec);
    avformat_close_input(&format);
    return n_frames;
}

int main(int argc, char **argv)
{
    Decode decode = { .packet = av_packet_alloc(), .frame = av_frame_alloc() };
    int first = 3;
    if (argc > first && !strcmp(argv[first], "--probe")) {
        decode.probes = true;
        first++;
    }
    long passes = argc > 2 ? atol(argv[2]) : 0;
    if (argc <= first || passes < 1 || (strcmp(argv[1], "decode") && strcmp(argv[1], "keyframes"))) {
        fprintf(stderr, "usage: %s decode|keyframes PASSES [--probe] CLIPS...\n", argv[0]);
        return 2;
    }
    decode.keyframes_only = !strcmp(argv[1], "keyframes");
    av_log_set_level(AV_LOG_ERROR);

    decode_clip(&decode, argv[first]);
    double start = cpu_s();
    long n_frames = 0, n_clips = 0;
    for (long pass = 0; pass < passes; pass++)
        for (int i = first; i < argc; i++, n_clips++)
            n_frames += decode_clip(&decode, argv[i]);
    double spent_s = cpu_s() - start;
    printf("{\"peer\": \"%s\", \"mode\": \"%s\", \"clips\": %ld, \"frames\": %ld, \"cpu_s\": %.6f}\n",
           decode.probes ? "libav-probe" : "libav", argv[1], n_clips, n_frames, spent_s);
    av_frame_free(&decode.frame);
    av_packet_free(&decode.packet);
    return 0;
}

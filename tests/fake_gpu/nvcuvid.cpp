// TEST CODE. A libnvcuvid.so.1 over the fake libcuda.so.1: "NVDEC" on the CPU.
//
// What comes through its parser (MPEG-1, 2, 4, JPEG) is really decoded, by libavcodec, so that the pictures
// are the true ones. What GStreamer parses itself (H.264, H.265, VP8, VP9) is not: such a picture gets one
// shade, told from its bytes. Tests make it fail through `fake_nvcuvid`.
#include <ffnvcodec/dynlink_cuda.h>
#include <ffnvcodec/dynlink_cuviddec.h>
#include <ffnvcodec/dynlink_nvcuvid.h>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>
}

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

// What tests set, and what they count; see tests/support/fake_gpu.rs.
struct Fake {
    // Fails from the n-th call on, counted down; 0 is never.
    std::atomic<int> fail_create, fail_decode, fail_map, hang_decode;
    // A picture that the parser does not see.
    std::atomic<int> lose_picture;
    // One call that hangs, and no other: -1 while it does, until it is 0 again.
    std::atomic<int> hang_one;
    std::atomic<int> n_created, n_destroyed, n_decoded, n_mapped, n_unmapped;
};
extern "C" {
__attribute__((visibility("default"))) Fake fake_nvcuvid{};
}

namespace {
const CUresult FAILED = (CUresult)999;
const unsigned SURFACES = 24;

// Whether this is the call that fails. What failed once goes on failing.
bool is_due(std::atomic<int> &countdown) {
    int n = countdown.load();
    if (n > 1)
        countdown.store(n - 1);
    return n == 1;
}

AVCodecID codec_id(cudaVideoCodec codec) {
    switch (codec) {
    case cudaVideoCodec_MPEG1:
        return AV_CODEC_ID_MPEG1VIDEO;
    case cudaVideoCodec_MPEG2:
        return AV_CODEC_ID_MPEG2VIDEO;
    case cudaVideoCodec_MPEG4:
        return AV_CODEC_ID_MPEG4;
    case cudaVideoCodec_JPEG:
        return AV_CODEC_ID_MJPEG;
    default:
        return AV_CODEC_ID_NONE;
    }
}

struct Parser {
    CUVIDPARSERPARAMS params;
    AVCodecContext *context = nullptr;
    int width = 0, height = 0;
    bool is_progressive = true;
    // Surfaces in use, by the time that came with their bytes.
    std::map<long long, int> decoding;
    bool is_used[SURFACES] = {};
    // Decoded and not shown yet.
    std::deque<AVFrame *> shown;
};

struct Decoder {
    CUVIDDECODECREATEINFO info;
    size_t pitch;
    std::vector<unsigned char> mapped;
    // Of pictures that came without a parser.
    unsigned char shades[SURFACES + 64] = {};
};

// The frame that the display callback under way is about.
thread_local AVFrame *showing = nullptr;

void open(Parser *parser) {
    const AVCodec *codec = avcodec_find_decoder(codec_id(parser->params.CodecType));
    parser->context = codec ? avcodec_alloc_context3(codec) : nullptr;
    if (parser->context) {
        parser->context->thread_count = 1;
        if (avcodec_open2(parser->context, codec, nullptr) < 0)
            avcodec_free_context(&parser->context);
    }
}

bool tell_sequence(Parser *parser) {
    AVCodecContext *context = parser->context;
    if (!context->width || (context->width == parser->width && context->height == parser->height))
        return true;
    parser->width = context->width, parser->height = context->height;
    CUVIDEOFORMAT format{};
    format.codec = parser->params.CodecType;
    format.frame_rate.numerator = 25, format.frame_rate.denominator = 1;
    format.progressive_sequence = parser->is_progressive;
    format.coded_width = (context->width + 15) & ~15, format.coded_height = (context->height + 15) & ~15;
    format.display_area.right = context->width, format.display_area.bottom = context->height;
    format.chroma_format = cudaVideoChromaFormat_420;
    format.min_num_decode_surfaces = SURFACES;
    return parser->params.pfnSequenceCallback(parser->params.pUserData, &format) > 0;
}

bool show(Parser *parser, size_t delay) {
    bool is_good = true;
    while (parser->shown.size() > delay) {
        AVFrame *frame = parser->shown.front();
        parser->shown.pop_front();
        auto at = parser->decoding.find(frame->pts);
        if (is_good && at != parser->decoding.end()) {
            CUVIDPARSERDISPINFO info{};
            info.picture_index = at->second;
            info.progressive_frame = !frame->interlaced_frame;
            info.top_field_first = frame->top_field_first;
            info.timestamp = frame->pts;
            showing = frame;
            is_good = parser->params.pfnDisplayPicture(parser->params.pUserData, &info) != 0;
            showing = nullptr;
        }
        if (at != parser->decoding.end()) {
            parser->is_used[at->second] = false;
            parser->decoding.erase(at);
        }
        av_frame_free(&frame);
    }
    return is_good;
}

void receive(Parser *parser) {
    for (AVFrame *frame = av_frame_alloc();; frame = av_frame_alloc()) {
        if (avcodec_receive_frame(parser->context, frame) < 0) {
            av_frame_free(&frame);
            return;
        }
        parser->shown.push_back(frame);
    }
}

// ISO 13818-2, 6.2.2.3.
void note_sequence(Parser *parser, const CUVIDSOURCEDATAPACKET *packet) {
    for (size_t i = 0; i + 6 < packet->payload_size; i++) {
        const unsigned char *p = packet->payload + i;
        if (!p[0] && !p[1] && p[2] == 1 && p[3] == 0xB5 && p[4] >> 4 == 1)
            parser->is_progressive = p[5] >> 3 & 1;
    }
}
} // namespace

API cuvidGetDecoderCaps(CUVIDDECODECAPS *caps) {
    // As an H200 would answer: no AV1.
    const int AV1 = 11;
    bool is_known = caps->eCodecType <= cudaVideoCodec_VP9 && caps->eCodecType != AV1;
    caps->bIsSupported = is_known && caps->eChromaFormat == cudaVideoChromaFormat_420 && caps->nBitDepthMinus8 == 0;
    caps->nNumNVDECs = 7;
    caps->nOutputFormatMask = 1;
    caps->nMinWidth = caps->nMinHeight = 48;
    caps->nMaxWidth = caps->nMaxHeight = 4096;
    caps->nMaxMBCount = 65536;
    return CUDA_SUCCESS;
}

API cuvidCtxLockCreate(CUvideoctxlock *lock, CUcontext) {
    *lock = (CUvideoctxlock)1;
    return CUDA_SUCCESS;
}
API cuvidCtxLockDestroy(CUvideoctxlock) { return CUDA_SUCCESS; }
API cuvidCtxLock(CUvideoctxlock, unsigned) { return CUDA_SUCCESS; }
API cuvidCtxUnlock(CUvideoctxlock, unsigned) { return CUDA_SUCCESS; }

API cuvidCreateVideoParser(CUvideoparser *out, CUVIDPARSERPARAMS *params) {
    auto *parser = new Parser{*params};
    open(parser);
    *out = (CUvideoparser)parser;
    return parser->context ? CUDA_SUCCESS : FAILED;
}

API cuvidDestroyVideoParser(CUvideoparser raw) {
    auto *parser = (Parser *)raw;
    for (AVFrame *frame : parser->shown)
        av_frame_free(&frame);
    avcodec_free_context(&parser->context);
    delete parser;
    return CUDA_SUCCESS;
}

API cuvidParseVideoData(CUvideoparser raw, CUVIDSOURCEDATAPACKET *packet) {
    auto *parser = (Parser *)raw;
    if (packet->payload_size && !is_due(fake_nvcuvid.lose_picture)) {
        note_sequence(parser, packet);
        AVPacket *copy = av_packet_alloc();
        av_new_packet(copy, (int)packet->payload_size);
        memcpy(copy->data, packet->payload, packet->payload_size);
        copy->pts = packet->timestamp;
        int error = avcodec_send_packet(parser->context, copy);
        av_packet_free(&copy);
        if (error < 0 || !tell_sequence(parser))
            return FAILED;
        int surface = 0;
        while (surface < (int)SURFACES && parser->is_used[surface])
            surface++;
        if (surface == (int)SURFACES)
            return FAILED;
        parser->is_used[surface] = true;
        parser->decoding[packet->timestamp] = surface;
        CUVIDPICPARAMS picture{};
        picture.CurrPicIdx = surface;
        if (!parser->params.pfnDecodePicture(parser->params.pUserData, &picture))
            return FAILED;
        receive(parser);
    } else if (packet->payload_size) {
        fake_nvcuvid.lose_picture = 0;
    }
    bool is_end = packet->flags & CUVID_PKT_ENDOFSTREAM;
    if (is_end) {
        avcodec_send_packet(parser->context, nullptr);
        receive(parser);
        avcodec_flush_buffers(parser->context);
    }
    bool is_good = show(parser, is_end ? 0 : parser->params.ulMaxDisplayDelay);
    if (is_end) {
        // As the real one: the next sequence is told anew.
        parser->width = parser->height = 0;
        parser->decoding.clear();
        memset(parser->is_used, 0, sizeof parser->is_used);
    }
    return is_good ? CUDA_SUCCESS : FAILED;
}

API cuvidCreateDecoder(CUvideodecoder *out, CUVIDDECODECREATEINFO *info) {
    if (is_due(fake_nvcuvid.fail_create))
        return FAILED;
    fake_nvcuvid.n_created++;
    *out = (CUvideodecoder) new Decoder{*info, (info->ulTargetWidth + 511) & ~511ul, {}};
    return CUDA_SUCCESS;
}

API cuvidDestroyDecoder(CUvideodecoder raw) {
    fake_nvcuvid.n_destroyed++;
    delete (Decoder *)raw;
    return CUDA_SUCCESS;
}

API cuvidDecodePicture(CUvideodecoder raw, CUVIDPICPARAMS *picture) {
    while (is_due(fake_nvcuvid.hang_decode))
        usleep(1000);
    if (is_due(fake_nvcuvid.hang_one)) {
        fake_nvcuvid.hang_one = -1;
        while (fake_nvcuvid.hang_one == -1)
            usleep(1000);
    }
    if (is_due(fake_nvcuvid.fail_decode))
        return FAILED;
    fake_nvcuvid.n_decoded++;
    unsigned sum = 0;
    for (unsigned i = 0; i < picture->nBitstreamDataLen; i++)
        sum = sum * 31 + picture->pBitstreamData[i];
    ((Decoder *)raw)->shades[picture->CurrPicIdx] = 16 + sum % 200;
    return CUDA_SUCCESS;
}

API cuvidMapVideoFrame64(CUvideodecoder raw, int surface, unsigned long long *out, unsigned *pitch,
                         CUVIDPROCPARAMS *) {
    if (is_due(fake_nvcuvid.fail_map))
        return FAILED;
    fake_nvcuvid.n_mapped++;
    auto *decoder = (Decoder *)raw;
    size_t width = decoder->info.ulTargetWidth, height = decoder->info.ulTargetHeight;
    decoder->mapped.assign(decoder->pitch * (height + (height + 1) / 2), 128);
    unsigned char *luma = decoder->mapped.data(), *chroma = luma + decoder->pitch * height;
    for (size_t row = 0; row < height; row++) {
        unsigned char *to = luma + row * decoder->pitch;
        if (showing)
            memcpy(to, showing->data[0] + row * showing->linesize[0], width);
        else
            memset(to, decoder->shades[surface], width);
    }
    for (size_t row = 0; showing && row < (height + 1) / 2; row++) {
        const unsigned char *u = showing->data[1] + row * showing->linesize[1];
        const unsigned char *v = showing->data[2] + row * showing->linesize[2];
        unsigned char *to = chroma + row * decoder->pitch;
        for (size_t x = 0; x < (width + 1) / 2; x++)
            to[2 * x] = u[x], to[2 * x + 1] = v[x];
    }
    *out = (unsigned long long)luma;
    *pitch = (unsigned)decoder->pitch;
    return CUDA_SUCCESS;
}

API cuvidUnmapVideoFrame64(CUvideodecoder, unsigned long long) {
    fake_nvcuvid.n_unmapped++;
    return CUDA_SUCCESS;
}

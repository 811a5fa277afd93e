// Every kernel, compiled for the CPU, by its name. Test code.
#define KERNEL_ON_CPU
#include "kernels.h"

#include "kernel.h"
#include <tuple>
#include <utility>

// Each is alone in its namespace; names of the preprocessor are everybody's.
namespace cosine_top_k_cu {
#include "cosine_top_k.cu"
#undef THREADS
#undef WARPS
#undef ROWS
#undef BLOCKS
}
namespace frame_statistics_cu {
#include "frame_statistics.cu"
#undef THREADS
#undef WARPS
}
namespace l2_normalize_cu {
#include "l2_normalize.cu"
#undef THREADS
}
namespace preprocess_cu {
#include "preprocess.cu"
#undef THREADS
}

namespace {
template <class... A, size_t... I> Kernel of_pointers(void (*kernel)(A...), std::index_sequence<I...>) {
    return [kernel](const Launch& l) {
        // Copied now: the launch may run long after the call.
        auto args = std::make_tuple(*static_cast<std::decay_t<A>*>(l.args[I])...);
        return std::function<void()>([kernel, args, l] {
            dim3 grid(l.grid[0], l.grid[1], l.grid[2]), block(l.block[0], l.block[1], l.block[2]);
            on_cpu::launch(grid, block, l.shared_bytes, [&] { std::apply(kernel, args); });
        });
    };
}
template <class... A> Kernel kernel(void (*f)(A...)) { return of_pointers(f, std::index_sequence_for<A...>{}); }
}  // namespace

const std::map<std::string, Kernel>& kernels() {
    // Never destroyed: threads may use it when the process ends.
    static const auto& all = *new std::map<std::string, Kernel>{
        {"cosine_top_k_1", kernel(cosine_top_k_cu::cosine_top_k_1)},
        {"cosine_top_k_2", kernel(cosine_top_k_cu::cosine_top_k_2)},
        {"cosine_top_k_4", kernel(cosine_top_k_cu::cosine_top_k_4)},
        {"frame_statistics_u8", kernel(frame_statistics_cu::frame_statistics_u8)},
        {"frame_statistics_u16", kernel(frame_statistics_cu::frame_statistics_u16)},
        {"l2_normalize", kernel(l2_normalize_cu::l2_normalize)},
        {"preprocess_f16", kernel(preprocess_cu::preprocess_f16)},
        {"preprocess_f32", kernel(preprocess_cu::preprocess_f32)},
    };
    return all;
}

// Modulated deformable convolution as a matrix product: `gather` unfolds the input into columns at the offset taps, and
// `scatter` carries the gradient of the columns back to the input, the offsets and the mask. A thread owns one tap of
// one offset group at one output pixel, and walks over CHANNELS channels (gather) or all of them (scatter: so that the
// gradients of offset and mask need no atomics).
#include "accumulate.cuh"

constexpr int CHANNELS = 16;

struct ConvProblem {
    int64 input_stride_b, input_stride_c, input_stride_h;  // pixels of a row are contiguous
    int B, C, H, W;
    int out_height, out_width;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int offset_groups;
};

template <typename T, typename A> struct GatherTensors {
    const T* input;    // [B, C, H, W]
    const A* offset;   // [B, G, K, 2, Ho, Wo]: dy, dx
    const A* mask;     // [B, G, K, Ho, Wo] or null
    T* columns;        // [B, C, K, Ho, Wo]
};

template <typename T, typename A> struct ScatterTensors {
    const T* input;                   // [B, C, H, W]
    const A* offset;                  // [B, G, K, 2, Ho, Wo]
    const A* mask;                    // [B, G, K, Ho, Wo] or null
    const T* grad_columns;            // [B, C, K, Ho, Wo]
    FixedPoint* fixed_point;          // or null: floating-point input gradients
    void* grad_input;                 // [B, C, H, W] of A, or int64 where fixed_point; zeroed; or null
    A* grad_offset;                   // [B, G, K, 2, Ho, Wo] or null
    A* grad_mask;                     // [B, G, K, Ho, Wo] or null
};

template <typename A> struct Tap {
    int64 b, group, tap, pixel;  // of the output
    int y, x;                    // top-left corner on the input
    A fy, fx;
    A mask;
    bool inside[4];
    A factor[4];
};

// The tap of thread `index`, which counts [B, G, K, Ho * Wo].
template <typename A>
__device__ __forceinline__ Tap<A> make_tap(const ConvProblem& p, const A* offset, const A* mask, int64 index) {
    const int64 pixels = static_cast<int64>(p.out_height) * p.out_width;
    const int taps = p.kernel_h * p.kernel_w;
    Tap<A> at = {};
    const int64 row = index / pixels;  // [B, G, K]
    at.pixel = index % pixels;
    at.tap = row % taps;
    at.group = row / taps % p.offset_groups;
    at.b = row / taps / p.offset_groups;
    const int out_y = at.pixel / p.out_width, out_x = at.pixel % p.out_width;
    const int tap_y = at.tap / p.kernel_w, tap_x = at.tap % p.kernel_w;
    const A y = out_y * p.stride_h - p.pad_h + tap_y * p.dilation_h + load(offset + row * 2 * pixels + at.pixel);
    const A x = out_x * p.stride_w - p.pad_w + tap_x * p.dilation_w + load(offset + (row * 2 + 1) * pixels + at.pixel);
    at.mask = mask == nullptr ? A(1) : load(mask + index);
    if (!(y > -1 && x > -1 && y < p.H && x < p.W)) return at;
    const A top = floor(y), left = floor(x);
    at.y = static_cast<int>(top);
    at.x = static_cast<int>(left);
    at.fy = y - top;
    at.fx = x - left;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const int row_c = at.y + (c >> 1), column_c = at.x + (c & 1);
        at.inside[c] = row_c >= 0 && column_c >= 0 && row_c < p.H && column_c < p.W;
        at.factor[c] = (c & 1 ? at.fx : 1 - at.fx) * (c >> 1 ? at.fy : 1 - at.fy);
    }
    return at;
}

template <typename T, typename A>
__device__ __forceinline__ void load_corners(const ConvProblem& p, const T* input, const Tap<A>& at, int64 channel,
                                             A (&corner)[4]) {
    const T* base = input + at.b * p.input_stride_b + channel * p.input_stride_c + at.y * p.input_stride_h + at.x;
#pragma unroll
    for (int c = 0; c < 4; ++c) corner[c] = at.inside[c] ? load(base + (c >> 1) * p.input_stride_h + (c & 1)) : A(0);
}

template <typename T>
__device__ __forceinline__ void gather(const GatherTensors<T, arithmetic<T>>& tensors, const ConvProblem& p) {
    using A = arithmetic<T>;
    const int64 pixels = static_cast<int64>(p.out_height) * p.out_width, taps = p.kernel_h * p.kernel_w;
    const int64 index = static_cast<int64>(blockIdx.x) * BLOCK + threadIdx.x;
    if (index >= p.B * p.offset_groups * taps * pixels) return;
    const Tap<A> at = make_tap<A>(p, tensors.offset, tensors.mask, index);
    const int per_group = p.C / p.offset_groups;
    const int start = blockIdx.y * CHANNELS;
    const int stop = start + CHANNELS < per_group ? start + CHANNELS : per_group;
    for (int i = start; i < stop; ++i) {
        const int64 channel = at.group * per_group + i;
        A corner[4], sum = 0;
        load_corners(p, tensors.input, at, channel, corner);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum += at.factor[c] * corner[c];
        tensors.columns[((at.b * p.C + channel) * taps + at.tap) * pixels + at.pixel] = narrow<T>(sum * at.mask);
    }
}

template <typename T>
__device__ __forceinline__ void scatter(const ScatterTensors<T, arithmetic<T>>& tensors, const ConvProblem& p) {
    using A = arithmetic<T>;
    const int64 pixels = static_cast<int64>(p.out_height) * p.out_width, taps = p.kernel_h * p.kernel_w;
    const int64 index = static_cast<int64>(blockIdx.x) * BLOCK + threadIdx.x;
    if (index >= p.B * p.offset_groups * taps * pixels) return;
    const Tap<A> at = make_tap<A>(p, tensors.offset, tensors.mask, index);
    const int per_group = p.C / p.offset_groups;
    const bool of_tap = tensors.grad_offset != nullptr || tensors.grad_mask != nullptr;
    A dot[4] = {};  // <corner, grad_columns> over the channels
    for (int i = 0; i < per_group; ++i) {
        const int64 channel = at.group * per_group + i;
        const A grad = load(tensors.grad_columns + ((at.b * p.C + channel) * taps + at.tap) * pixels + at.pixel);
        if (of_tap) {
            A corner[4];
            load_corners(p, tensors.input, at, channel, corner);
#pragma unroll
            for (int c = 0; c < 4; ++c) dot[c] += corner[c] * grad;
        }
        if (tensors.grad_input != nullptr) {
            const A terms[1] = {grad};
            const int64 plane = (at.b * p.C + channel) * p.H;
#pragma unroll
            for (int c = 0; c < 4; ++c)
                if (at.inside[c])
                    accumulate<A, 1>(tensors.grad_input, (plane + at.y + (c >> 1)) * p.W + at.x + (c & 1), terms,
                                     at.factor[c] * at.mask, tensors.fixed_point);
        }
    }
    if (tensors.grad_offset != nullptr) {
        const int64 row = index / pixels;
        tensors.grad_offset[row * 2 * pixels + at.pixel] =
            at.mask * ((1 - at.fx) * (dot[2] - dot[0]) + at.fx * (dot[3] - dot[1]));
        tensors.grad_offset[(row * 2 + 1) * pixels + at.pixel] =
            at.mask * ((1 - at.fy) * (dot[1] - dot[0]) + at.fy * (dot[3] - dot[2]));
    }
    if (tensors.grad_mask != nullptr)
        tensors.grad_mask[index] = at.factor[0] * dot[0] + at.factor[1] * dot[1] + at.factor[2] * dot[2] +
                                   at.factor[3] * dot[3];
}

#define INSTANTIATE_GATHER(name, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const GatherTensors<T, arithmetic<T>> tensors, const ConvProblem problem) {                               \
        gather<T>(tensors, problem);                                                                                   \
    }

#define INSTANTIATE_SCATTER(name, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const ScatterTensors<T, arithmetic<T>> tensors, const ConvProblem problem) {                              \
        scatter<T>(tensors, problem);                                                                                  \
    }

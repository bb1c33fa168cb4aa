// A kernel that uses all that the shim checks: shared memory between barriers, shuffles, atomics, 16-byte loads. It sums
// each block's numbers and adds the sum to every one of them, in reverse order. The tests plant bugs by replacing text.
#include "scalar.cuh"

struct Tensors {
    const float* input;  // [count]
    float* output;       // [count]
    float* total;        // [1]
};

struct Problem {
    int64 count;  // a multiple of BLOCK
};

__shared__ float numbers[BLOCK];
__shared__ float sums[BLOCK / 32];

template <int WARPS> __device__ __forceinline__ void reverse_and_sum(const Tensors& tensors, const Problem& problem) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int64 start = static_cast<int64>(blockIdx.x) * BLOCK;
    numbers[thread] = load(tensors.input + start + thread);
    float sum = numbers[thread];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    float all = 0;
    for (int w = 0; w < WARPS; ++w) all += sums[w];
    tensors.output[start + thread] = numbers[BLOCK - 1 - thread] + all;
    if (thread == 0) atomicAdd(tensors.total, all);
}

#define INSTANTIATE_SELFTEST(name, T)                                                         \
    extern "C" __global__ void name(const Tensors tensors, const Problem problem) {           \
        reverse_and_sum<BLOCK / 32>(tensors, problem);                                        \
    }

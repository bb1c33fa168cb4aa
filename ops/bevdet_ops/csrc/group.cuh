// A group is GROUP neighbouring lanes of a warp that serve one head of one query. Control flow is the same for the
// whole warp wherever these are called, so every lane takes part in every shuffle.
#pragma once
#include "intrinsics.cuh"

template <int GROUP, typename T> __device__ __forceinline__ T broadcast(T value, int lane) {
    return __shfl_sync(FULL_WARP, value, lane, GROUP);
}

template <int GROUP, typename T> __device__ __forceinline__ T group_sum(T value) {
#pragma unroll
    for (int step = GROUP / 2; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step, GROUP);
    return value;
}

template <int GROUP, typename T> __device__ __forceinline__ T group_max(T value) {
#pragma unroll
    for (int step = GROUP / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(FULL_WARP, value, step, GROUP);
        value = other > value ? other : value;
    }
    return value;
}

template <int GROUP> __device__ __forceinline__ unsigned group_or(unsigned value) {
#pragma unroll
    for (int step = GROUP / 2; step > 0; step /= 2) value |= __shfl_xor_sync(FULL_WARP, value, step, GROUP);
    return value;
}

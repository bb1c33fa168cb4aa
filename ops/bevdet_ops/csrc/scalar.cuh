// Storage types, their arithmetic type, and loads and stores of VEC neighbouring channels.
#pragma once
#include "intrinsics.cuh"

constexpr int BLOCK = 128;  // threads of a block, in every kernel

struct Half { unsigned short bits; };
struct Bfloat16 { unsigned short bits; };

// 16-bit values are stored, never computed with.
template <typename T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };
template <typename T> using arithmetic = typename Arithmetic<T>::type;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(Half value) { return half_to_float(value.bits); }
__device__ __forceinline__ float widen(Bfloat16 value) { return bfloat16_to_float(value.bits); }

template <typename T> __device__ __forceinline__ T narrow(arithmetic<T> value) { return value; }
template <> __device__ __forceinline__ Half narrow<Half>(float value) { return {float_to_half(value)}; }
template <> __device__ __forceinline__ Bfloat16 narrow<Bfloat16>(float value) { return {float_to_bfloat16(value)}; }

template <typename T, int VEC> struct alignas(VEC * sizeof(T)) Pack { T lane[VEC]; };

__device__ __forceinline__ float load(const float* address) { return __ldg(address); }
__device__ __forceinline__ double load(const double* address) { return __ldg(address); }
__device__ __forceinline__ float load(const Half* address) {
    return half_to_float(__ldg(reinterpret_cast<const unsigned short*>(address)));
}
__device__ __forceinline__ float load(const Bfloat16* address) {
    return bfloat16_to_float(__ldg(reinterpret_cast<const unsigned short*>(address)));
}

// VEC channels at `address`, or zeros where `wanted` is false; a pack of 16 bytes is one load.
template <typename T, int VEC>
__device__ __forceinline__ void load(const T* address, bool wanted, arithmetic<T> (&out)[VEC]) {
    if constexpr (VEC == 1) {
        out[0] = wanted ? load(address) : arithmetic<T>(0);
    } else {
        static_assert(VEC * sizeof(T) == 16, "a pack is one 16-byte load");
        uint4 raw = make_uint4(0, 0, 0, 0);
        if (wanted) raw = __ldg(reinterpret_cast<const uint4*>(address));
        Pack<T, VEC> pack;
        memcpy(&pack, &raw, sizeof(pack));
#pragma unroll
        for (int i = 0; i < VEC; ++i) out[i] = widen(pack.lane[i]);
    }
}

template <typename T, int VEC>
__device__ __forceinline__ void store(T* address, const arithmetic<T> (&values)[VEC]) {
    Pack<T, VEC> pack;
#pragma unroll
    for (int i = 0; i < VEC; ++i) pack.lane[i] = narrow<T>(values[i]);
    *reinterpret_cast<Pack<T, VEC>*>(address) = pack;
}

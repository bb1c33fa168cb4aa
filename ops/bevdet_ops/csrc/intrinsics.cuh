// The few machine instructions that CUDA C++ has no portable spelling for. Everything else in this folder is plain
// C++ over these, so the kernels also run on a CPU where a test harness brings its own version of this one file.
#pragma once

using int64 = long long;

constexpr unsigned FULL_WARP = 0xffffffffu;

// NVRTC defines no INFINITY and no NAN.
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

// Half precision without a header: NVRTC finds none unless a CUDA toolkit or the right wheel is installed.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float bfloat16_to_float(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// Round to nearest even, in integer arithmetic: the instruction exists from sm_80 on only.
__device__ __forceinline__ unsigned short float_to_bfloat16(float value) {
    const unsigned bits = __float_as_uint(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? 0x7fff : static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// address[0..3] += (a, b, c, d), relaxed; address is 16-byte aligned.
__device__ __forceinline__ void reduce_add4(float* address, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 : : "l"(__cvta_generic_to_global(address)), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    atomicAdd(address, a);
    atomicAdd(address + 1, b);
    atomicAdd(address + 2, c);
    atomicAdd(address + 3, d);
#endif
}

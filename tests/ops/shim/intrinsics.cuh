// The CPU's version of csrc/intrinsics.cuh: the same functions without machine code.
#pragma once
#include <cuda_shim.h>  // angle brackets: not pasted into the kernels' text

using int64 = long long;

constexpr unsigned FULL_WARP = 0xffffffffu;

inline float infinity() { return INFINITY; }
inline float not_a_number() { return NAN; }

// By the CUDA headers' host code, in half_types.cpp.
float half_to_float(unsigned short bits);
unsigned short float_to_half(float value);
float bfloat16_to_float(unsigned short bits);
unsigned short float_to_bfloat16(float value);

inline void reduce_add4(float* address, float a, float b, float c, float d) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) __builtin_trap();  // the instruction faults
    int i = 0;
    for (float term : {a, b, c, d}) atomicAdd(address + i++, term);
}

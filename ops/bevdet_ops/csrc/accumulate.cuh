// Adding into value gradients, where many queries meet: floating-point reductions, or 64-bit fixed point, whose sum
// does not depend on the order of its terms.
#pragma once
#include "scalar.cuh"

template <int VEC>
__device__ __forceinline__ void add_floating(float* address, const float (&terms)[VEC], float factor) {
    if constexpr (VEC % 4 == 0) {
#pragma unroll
        for (int i = 0; i < VEC; i += 4)
            reduce_add4(address + i, terms[i] * factor, terms[i + 1] * factor, terms[i + 2] * factor,
                        terms[i + 3] * factor);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; ++i) atomicAdd(address + i, terms[i] * factor);
    }
}

template <int VEC>
__device__ __forceinline__ void add_floating(double* address, const double (&terms)[VEC], double factor) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) atomicAdd(address + i, terms[i] * factor);
}

// `scale` is chosen by the host such that no sum of finite terms can leave the 64 bits. Integers know no infinity: a term
// that is not finite turns `poison`, which the host adds to the result, into a NaN.
struct FixedPoint {
    double scale, poison;
};

template <typename A, int VEC>
__device__ __forceinline__ void add_fixed_point(int64* address, const A (&terms)[VEC], A factor, FixedPoint* format) {
    const double scale = format->scale;
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const A term = terms[i] * factor;
        if (isfinite(term))
            atomicAdd(reinterpret_cast<unsigned long long*>(address + i),
                      static_cast<unsigned long long>(__double2ll_rn(static_cast<double>(term) * scale)));
        else
            atomicAdd(&format->poison, static_cast<double>(not_a_number()));
    }
}

// gradient[element .. element + VEC) += terms * factor; `gradient` is int64 where there is a fixed-point format, else A
template <typename A, int VEC>
__device__ __forceinline__ void accumulate(void* gradient, int64 element, const A (&terms)[VEC], A factor,
                                           FixedPoint* fixed_point) {
    if (fixed_point != nullptr)
        add_fixed_point<A, VEC>(static_cast<int64*>(gradient) + element, terms, factor, fixed_point);
    else
        add_floating<VEC>(static_cast<A*>(gradient) + element, terms, factor);
}

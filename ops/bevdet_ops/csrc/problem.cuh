// Sizes, strides and modes of one call. The host fills the same fields in the same order (cuda_kernels.py).
#pragma once
#include "accumulate.cuh"

constexpr int MAX_LEVELS = 64;

enum Activation { ACTIVATION_NONE = 0, ACTIVATION_SIGMOID = 1, ACTIVATION_SOFTMAX = 2 };
enum Reduction { REDUCTION_SUM = 0, REDUCTION_MEAN = 1, REDUCTION_MEAN_VISIBLE = 2 };

// Strides count elements; the stride of an axis of size 1 that stands for all cameras, heads or levels is 0.
struct Problem {
    int64 value_stride_b, value_stride_n, value_stride_s;                      // heads and channels are contiguous
    int64 offset_stride_b, offset_stride_n, offset_stride_q;
    int64 weight_stride_b, weight_stride_n, weight_stride_q;
    int64 level_start[MAX_LEVELS];                                             // pixels before level l
    int B, N, S, Q, M, D, L, P;
    int reference_levels, anchors, reference_numbers;                          // Lr in {1, L}; Z; 2 or 4
    int offset_stride_m, offset_stride_l;
    int weight_stride_m;
    int activation, reduction;
    int height[MAX_LEVELS], width[MAX_LEVELS];
};

// T: the value's type; A: the type of coordinates, weights and all arithmetic.
template <typename T, typename A> struct ForwardTensors {
    const T* value;                  // [B, N, S, M, D]
    const A* reference_points;       // [B, N, Q, Lr, Z, 2 | 4]
    const A* sampling_offsets;       // [B, No, Q, Mo, Lo, P, 2] or null
    const A* attention_weights;      // [B, Nw, Q, Mw, L, P]
    const unsigned char* visible;    // [B, N, Q] or null
    T* output;                       // [B, Q, M, D]
};

template <typename T, typename A> struct BackwardTensors {
    const T* value;                  // [B, N, S, M, D]
    const A* reference_points;       // [B, N, Q, Lr, Z, 2 | 4]
    const A* sampling_offsets;       // [B, No, Q, Mo, Lo, P, 2] or null
    const A* attention_weights;      // [B, Nw, Q, Mw, L, P]
    const unsigned char* visible;    // [B, N, Q] or null
    const T* grad_output;            // [B, Q, M, D]
    FixedPoint* fixed_point;         // or null: floating-point value gradients
    void* grad_value;                // [B, N, S, M, D] of A, or int64 where fixed_point; zeroed; or null
    A* grad_reference;               // [B, N, Q, M, Lr, Z, 2 | 4] or null: one summand per head
    A* grad_offsets;                 // [B, No, Q, M, L, P, 2] or null: every head and level
    A* grad_weights;                 // [B, Nw, Q, M, L, P] or null: every head
};

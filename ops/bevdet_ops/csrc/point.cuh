// One sampling point: where it falls on its level, and how its weight is activated.
#pragma once
#include "group.cuh"
#include "problem.cuh"

// What a lane works out once and its group shares by shuffle.
template <typename A> struct Sample {
    unsigned corners;  // (top-left pixel + width + 1) * 16 + one bit for each corner that lies on the map
    A fx, fy;          // position between the corners, [0, 1)
    A weight;          // activated
};

template <typename A> struct Corners {
    int top_left;    // pixel; may lie one row and one column off the map
    bool inside[4];  // top-left, top-right, bottom-left, bottom-right
    A factor[4];     // bilinear

    __device__ __forceinline__ int64 pixel(int c, int width) const { return top_left + (c & 1) + (c >> 1) * width; }
};

template <int GROUP, typename A> __device__ __forceinline__ Sample<A> broadcast(const Sample<A>& sample, int lane) {
    return {broadcast<GROUP>(sample.corners, lane), broadcast<GROUP>(sample.fx, lane),
            broadcast<GROUP>(sample.fy, lane), broadcast<GROUP>(sample.weight, lane)};
}

template <typename A> __device__ __forceinline__ Corners<A> unpack(const Sample<A>& sample, int width) {
    Corners<A> corners;
    corners.top_left = static_cast<int>(sample.corners >> 4) - width - 1;
#pragma unroll
    for (int c = 0; c < 4; ++c) corners.inside[c] = sample.corners >> c & 1u;
    const A gx = 1 - sample.fx, gy = 1 - sample.fy;
    corners.factor[0] = gx * gy;
    corners.factor[1] = sample.fx * gy;
    corners.factor[2] = gx * sample.fy;
    corners.factor[3] = sample.fx * sample.fy;
    return corners;
}

// Position in pixels of a level, where pixel centres are integers. Far away or not a number: no corner is inside.
template <typename A>
__device__ __forceinline__ Sample<A> make_sample(A x, A y, A weight, int height, int width) {
    Sample<A> sample = {0u, A(0), A(0), weight};
    if (!(x > -1 && y > -1 && x < width && y < height)) return sample;
    const A left = floor(x), top = floor(y);
    const int x0 = static_cast<int>(left), y0 = static_cast<int>(top);
    const unsigned in_x = (x0 >= 0 ? 1u : 0u) | (x0 + 1 < width ? 2u : 0u);
    const unsigned mask = (y0 >= 0 ? in_x : 0u) | (y0 + 1 < height ? in_x << 2 : 0u);
    sample.corners = static_cast<unsigned>((y0 + 1) * width + x0 + 1) << 4 | mask;
    sample.fx = x - left;
    sample.fy = y - top;
    return sample;
}

// A point of one head: its anchor (x, y[, w, h]) and its offset, and from these its position.
template <typename A> struct Placement {
    A anchor_w, anchor_h;  // box references only
    A dx, dy;              // offset as given
    A x, y;                // pixels of the level
};

template <typename A>
__device__ __forceinline__ Placement<A> place(const Problem& problem, const A* reference,  // [Lr, Z, 2 | 4]
                                              const A* offsets,                             // [Lo, P, 2] or null
                                              int level, int p, int P) {
    const int slot = (problem.reference_levels == 1 ? 0 : level) * problem.anchors + p % problem.anchors;
    const A* anchor = reference + slot * problem.reference_numbers;
    const A width = problem.width[level], height = problem.height[level];
    Placement<A> place = {A(0), A(0), A(0), A(0), A(0), A(0)};
    if (offsets != nullptr) {
        const A* offset = offsets + level * problem.offset_stride_l + p * 2;
        place.dx = load(offset);
        place.dy = load(offset + 1);
    }
    const A x = load(anchor), y = load(anchor + 1);
    if (problem.reference_numbers == 4) {
        place.anchor_w = load(anchor + 2);
        place.anchor_h = load(anchor + 3);
        place.x = (x + place.dx * (place.anchor_w * A(0.5) / P)) * width - A(0.5);
        place.y = (y + place.dy * (place.anchor_h * A(0.5) / P)) * height - A(0.5);
    } else {
        place.x = x * width + place.dx - A(0.5);
        place.y = y * height + place.dy - A(0.5);
    }
    return place;
}

// Softmax over the points of a head needs their maximum and the sum of exponentials; the others need nothing.
template <typename A> struct Normalizer {
    A maximum, inverse_sum;
};

template <int GROUP, typename A>
__device__ __forceinline__ Normalizer<A> make_normalizer(const Problem& problem, const A* weights,  // [L * P]
                                                         bool wanted, int lane, int points) {
    Normalizer<A> norm = {A(0), A(1)};
    if (problem.activation != ACTIVATION_SOFTMAX) return norm;
    norm.maximum = -infinity();
    for (int j = lane; j < points; j += GROUP) {
        const A weight = wanted ? load(weights + j) : A(0);
        norm.maximum = weight > norm.maximum ? weight : norm.maximum;
    }
    norm.maximum = group_max<GROUP>(norm.maximum);
    A sum = 0;
    for (int j = lane; j < points; j += GROUP) sum += exp((wanted ? load(weights + j) : A(0)) - norm.maximum);
    norm.inverse_sum = 1 / group_sum<GROUP>(sum);
    return norm;
}

template <typename A>
__device__ __forceinline__ A activate(const Problem& problem, const Normalizer<A>& norm, A raw) {
    if (problem.activation == ACTIVATION_SOFTMAX) return exp(raw - norm.maximum) * norm.inverse_sum;
    if (problem.activation == ACTIVATION_SIGMOID) return 1 / (1 + exp(-raw));
    return raw;
}

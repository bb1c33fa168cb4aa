// CUDA C++ for g++: just the words that the kernels use. Threads are fibers of one CPU thread (fibers.cpp).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// One segment, so that it can be poisoned before each block and watched.
#define __shared__ static __attribute__((section("shim_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;  // of the fiber that runs
extern dim3 blockDim, gridDim;

using std::exp;
using std::floor;
using std::isfinite;

namespace shim {

enum class Collective { SHUFFLE, SHUFFLE_XOR, ANY, SYNC_WARP };

// Waits until every lane in `mask` has called the same; returns this lane's result.
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width);
void block_barrier();
void atomic_access(const void* address, int bytes);  // tells the race detector, if there is one

template <typename T> T shuffle(Collective kind, unsigned mask, T value, int argument, int width) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "one register or two");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = collective(kind, mask, bits, argument, width);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

// A registered kernel can be launched by name.
using Launcher = void (*)(void* kernel, const void* tensors, const void* problem);
void register_kernel(const char* name, void* kernel, Launcher launcher);

template <typename Tensors, typename Problem> struct Registration {
    Registration(const char* name, void (*kernel)(Tensors, Problem)) {
        register_kernel(name, reinterpret_cast<void*>(kernel), [](void* k, const void* tensors, const void* problem) {
            reinterpret_cast<void (*)(Tensors, Problem)>(k)(*static_cast<const Tensors*>(tensors),
                                                            *static_cast<const Problem*>(problem));
        });
    }
};

}  // namespace shim

#define SHIM_REGISTER(name) static shim::Registration registration_of_##name(#name, name);

template <typename T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return shim::shuffle(shim::Collective::SHUFFLE, mask, value, lane, width);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return shim::shuffle(shim::Collective::SHUFFLE_XOR, mask, value, lanes, width);
}
inline bool __any_sync(unsigned mask, bool predicate) {
    return shim::collective(shim::Collective::ANY, mask, predicate, 0, 32) != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::collective(shim::Collective::SYNC_WARP, mask, 0, 0, 32); }
inline void __syncthreads() { shim::block_barrier(); }

// Fibers change places at collectives only, so plain arithmetic is atomic here; the race detector is told that it may be.
template <typename T> __attribute__((no_sanitize("thread"))) T atomicAdd(T* address, T value) {
    shim::atomic_access(address, sizeof(T));
    const T old = *address;
    *address = old + value;
    return old;
}

template <typename T> T __ldg(const T* address) { return *address; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
// As the instruction: saturates, and makes the smallest integer of a NaN.
inline long long __double2ll_rn(double value) {
    if (value >= 9223372036854775808.0) return INT64_MAX;
    return value >= -9223372036854775808.0 ? std::llrint(value) : INT64_MIN;
}

// What the scheduler, the race detector and the program's main share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <random>

#include "cuda_shim.h"

namespace shim {

// Runs a kernel: blocks, warps and lanes take turns in an order drawn from `order`.
void run_grid(dim3 grid, dim3 block, std::mt19937_64& order, void* kernel, Launcher launcher, const void* tensors,
              const void* problem);

[[noreturn]] void fail(const char* format, ...);

// Where the running thread is; two accesses of a block are ordered if a barrier that both passed lies between them.
struct Position {
    int64_t block = -1;
    int thread = 0, warp = 0;
    int64_t block_epoch = 0, warp_epoch = 0;
};
extern Position position;

// The race detector; without one these do nothing (races.cpp, no_races.cpp).
void watch(const void* address, size_t bytes, bool initialized, const char* name);
void forget_shared_memory();  // a new block starts

}  // namespace shim

extern "C" {
extern char __start_shim_shared[] __attribute__((weak));
extern char __stop_shim_shared[] __attribute__((weak));
}

// Thread blocks on one CPU thread: every CUDA thread is a fiber that runs until it reaches a collective or a barrier.
#include "fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {

Position position;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr int WARP = 32;
const char* const NAMES[] = {"__shfl_sync", "__shfl_xor_sync", "__any_sync", "__syncwarp"};

enum class State { READY, IN_COLLECTIVE, AT_BARRIER, DONE };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    void* fake_stack = nullptr;
    uint3 index;
    State state;
    int64_t warp_epoch;
    // The collective it waits in.
    Collective kind;
    unsigned mask;
    uint64_t value, result;
    int argument, width;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
int current = -1;
int64_t block_epoch = 0;

struct Call {
    void* kernel;
    Launcher launcher;
    const void *tensors, *problem;
} call;

// AddressSanitizer has to be told of every change of stack.
void leave([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void arrive([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void yield(State state) {
    Fiber& self = fibers[current];
    self.state = state;
    leave(state == State::DONE ? nullptr : &self.fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&self.context, &scheduler);
    arrive(self.fake_stack, nullptr, nullptr);
}

void fiber_main() {
    arrive(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    call.launcher(call.kernel, call.tensors, call.problem);
    yield(State::DONE);
}

void resume(int thread) {
    Fiber& fiber = fibers[thread];
    current = thread;
    threadIdx = fiber.index;
    position.thread = thread;
    position.warp = thread / WARP;
    position.block_epoch = block_epoch;
    position.warp_epoch = fiber.warp_epoch;
    leave(&scheduler_fake_stack, fiber.stack.get(), STACK_BYTES);
    swapcontext(&scheduler, &fiber.context);
    arrive(scheduler_fake_stack, nullptr, nullptr);
}

void fail_in_block(const char* what, int thread) {
    fail("%s: block (%u, %u, %u), thread %d", what, blockIdx.x, blockIdx.y, blockIdx.z, thread);
}

// Releases the lanes of a collective once all that its mask names have come.
void complete_collective(int thread) {
    const Fiber& self = fibers[thread];
    const int first = thread / WARP * WARP;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!(self.mask >> lane & 1u)) continue;
        if (first + lane >= static_cast<int>(fibers.size())) fail_in_block("mask names a lane that does not exist", thread);
        const Fiber& other = fibers[first + lane];
        if (other.state == State::DONE) fail_in_block("mask names a lane that has exited", thread);
        if (other.state != State::IN_COLLECTIVE) return;
        if (other.kind != self.kind || other.mask != self.mask || other.width != self.width) return;
    }
    bool any = false;
    for (int lane = 0; lane < WARP; ++lane)
        if (self.mask >> lane & 1u) any |= fibers[first + lane].value != 0;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!(self.mask >> lane & 1u)) continue;
        Fiber& fiber = fibers[first + lane];
        const int segment = lane / fiber.width * fiber.width;
        int source = lane;
        if (fiber.kind == Collective::SHUFFLE) source = segment + (fiber.argument & (fiber.width - 1));
        if (fiber.kind == Collective::SHUFFLE_XOR && (lane ^ fiber.argument) < segment + fiber.width)
            source = lane ^ fiber.argument;
        if (!(self.mask >> source & 1u)) fail_in_block("shuffle reads a lane outside its mask", first + lane);
        fiber.result = fiber.kind == Collective::ANY ? any : fibers[first + source].value;
        if (fiber.kind == Collective::SYNC_WARP && self.mask == 0xffffffffu) ++fiber.warp_epoch;
    }
    for (int lane = 0; lane < WARP; ++lane)
        if (self.mask >> lane & 1u) fibers[first + lane].state = State::READY;
}

[[noreturn]] void fail_deadlock() {
    for (size_t t = 0; t < fibers.size(); ++t) {
        const Fiber& fiber = fibers[t];
        if (fiber.state == State::AT_BARRIER) fprintf(stderr, "  thread %zu waits in __syncthreads\n", t);
        if (fiber.state == State::IN_COLLECTIVE)
            fprintf(stderr, "  thread %zu waits in %s, mask %08x\n", t, NAMES[static_cast<int>(fiber.kind)], fiber.mask);
    }
    fail("deadlock: threads of block (%u, %u, %u) wait for each other", blockIdx.x, blockIdx.y, blockIdx.z);
}

void run_block(std::mt19937_64& order) {
    block_epoch = 0;
    if (__start_shim_shared) memset(__start_shim_shared, 0xff, __stop_shim_shared - __start_shim_shared);
    forget_shared_memory();
    std::vector<int> ready;
    for (size_t t = 0; t < fibers.size(); ++t) {
        Fiber& fiber = fibers[t];
        fiber.state = State::READY;
        fiber.warp_epoch = 0;
        fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), STACK_BYTES);  // an exited fiber leaves its frames behind
#endif
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (;;) {
        ready.clear();
        size_t done = 0, waiting = 0;
        for (size_t t = 0; t < fibers.size(); ++t) {
            if (fibers[t].state == State::READY) ready.push_back(t);
            done += fibers[t].state == State::DONE;
            waiting += fibers[t].state == State::AT_BARRIER;
        }
        if (done == fibers.size()) return;
        if (ready.empty() && done + waiting == fibers.size()) {
            ++block_epoch;
            for (Fiber& fiber : fibers)
                if (fiber.state == State::AT_BARRIER) fiber.state = State::READY;
            continue;
        }
        if (ready.empty()) fail_deadlock();
        std::shuffle(ready.begin(), ready.end(), order);
        for (int thread : ready) {
            resume(thread);
            if (fibers[thread].state == State::IN_COLLECTIVE) complete_collective(thread);
        }
    }
}

}  // namespace

uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width) {
    Fiber& self = fibers[current];
    if (!(mask >> (current % WARP) & 1u)) fail_in_block("mask does not name the calling lane", current);
    self.kind = kind;
    self.mask = mask;
    self.value = value;
    self.argument = argument;
    self.width = width;
    yield(State::IN_COLLECTIVE);
    return self.result;
}

void block_barrier() { yield(State::AT_BARRIER); }

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "SHIM ERROR: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    fflush(stderr);
    _Exit(3);
}

void run_grid(dim3 grid, dim3 block, std::mt19937_64& order, void* kernel, Launcher launcher, const void* tensors,
              const void* problem) {
    gridDim = grid;
    blockDim = block;
    call = {kernel, launcher, tensors, problem};
    fibers.clear();
    fibers.resize(static_cast<size_t>(block.x) * block.y * block.z);
    for (size_t t = 0; t < fibers.size(); ++t)
        fibers[t].index = {static_cast<unsigned>(t % block.x), static_cast<unsigned>(t / block.x % block.y),
                           static_cast<unsigned>(t / block.x / block.y)};
    std::vector<size_t> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), order);
    for (size_t b : blocks) {
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
        position.block = b;
        run_block(order);
    }
    position.block = -1;
}

}  // namespace shim

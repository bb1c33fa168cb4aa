// A race detector. The kernels are compiled with -fsanitize=thread, which calls __tsan_read4(address) and so on before
// every plain access; instead of the thread sanitizer's library, these functions answer. They know CUDA's rules: threads
// of a block are ordered by __syncthreads, lanes of a warp also by __syncwarp, blocks by nothing at all.
#include <cstdio>
#include <string>
#include <vector>

#include "fibers.h"

namespace shim {
namespace {

struct Access {
    Position at;  // block -1: none yet
    bool atomic = false;
};

struct Byte {
    bool written = false;
    Access write, read[2];  // two last readers: one of them is another thread than the next writer
};

struct Region {
    const char* start;
    std::vector<Byte> bytes;
    std::string name;
};

std::vector<Region> regions;
Region shared;  // of the block that runs

bool same_thread(const Position& a, const Position& b) { return a.block == b.block && a.thread == b.thread; }

bool ordered(const Position& before, const Position& now) {
    if (before.block != now.block) return false;
    return before.thread == now.thread || before.block_epoch < now.block_epoch ||
           (before.warp == now.warp && before.warp_epoch < now.warp_epoch);
}

void check(const Access& before, bool before_writes, bool atomic, bool writes, const Region& region, size_t offset) {
    if (before.at.block < 0 || (before.atomic && atomic) || ordered(before.at, position)) return;
    fail("race on %s, byte %zu: %s%s by block %lld thread %d and %s%s by block %lld thread %d, no barrier between",
         region.name.c_str(), offset, before.atomic ? "atomic " : "", before_writes ? "write" : "read",
         static_cast<long long>(before.at.block), before.at.thread, atomic ? "atomic " : "", writes ? "write" : "read",
         static_cast<long long>(position.block), position.thread);
}

Region* find(const char* address) {
    if (address >= shared.start && address < shared.start + shared.bytes.size()) return &shared;
    for (Region& region : regions)
        if (address >= region.start && address < region.start + region.bytes.size()) return &region;
    return nullptr;
}

void access(const void* address, size_t bytes, bool writes, bool atomic) {
    if (position.block < 0) return;
    Region* region = find(static_cast<const char*>(address));
    if (region == nullptr) return;  // a local variable
    const size_t start = static_cast<const char*>(address) - region->start;
    for (size_t i = start; i < start + bytes; ++i) {
        if (i >= region->bytes.size()) fail("access past the end of %s, byte %zu", region->name.c_str(), i);
        Byte& byte = region->bytes[i];
        if (!byte.written && (atomic || !writes))
            fail("read of %s, byte %zu, that nothing has written: block %lld thread %d", region->name.c_str(), i,
                 static_cast<long long>(position.block), position.thread);
        check(byte.write, true, atomic, writes, *region, i);
        if (writes) {
            for (const Access& read : byte.read) check(read, false, atomic, true, *region, i);
            byte.write = {position, atomic};
            byte.written = true;
        } else {
            if (!same_thread(byte.read[0].at, position)) byte.read[1] = byte.read[0];
            byte.read[0] = {position, false};
        }
    }
}

}  // namespace

void watch(const void* address, size_t bytes, bool initialized, const char* name) {
    Byte byte;
    byte.written = initialized;
    regions.push_back({static_cast<const char*>(address), std::vector<Byte>(bytes, byte), name});
}

void forget_shared_memory() {
    if (!__start_shim_shared) return;
    shared = {__start_shim_shared, std::vector<Byte>(__stop_shim_shared - __start_shim_shared), "shared memory"};
}

void atomic_access(const void* address, int bytes) { access(address, bytes, true, true); }

}  // namespace shim

extern "C" {

#define ACCESS(bytes)                                                                          \
    void __tsan_read##bytes(void* a) { shim::access(a, bytes, false, false); }                 \
    void __tsan_write##bytes(void* a) { shim::access(a, bytes, true, false); }                 \
    void __tsan_unaligned_read##bytes(void* a) { shim::access(a, bytes, false, false); }       \
    void __tsan_unaligned_write##bytes(void* a) { shim::access(a, bytes, true, false); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* a, unsigned long bytes) { shim::access(a, bytes, false, false); }
void __tsan_write_range(void* a, unsigned long bytes) { shim::access(a, bytes, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

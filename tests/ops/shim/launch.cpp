// The program: reads one launch from a file, runs it, writes every tensor back.
//
//   launch REQUEST REPLY
//
// REQUEST, 64-bit little-endian integers: seed; grid x, y, z; block x; bytes of the kernel's name, the name; number of
// tensors; then of each tensor: bytes (-1: null), misalignment, initialized, bytes of the path of a file to map instead
// of data (0: none), the path or the data; bytes of the problem, the problem.
// REPLY: the data of all tensors that are neither null nor mapped, one after the other.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "fibers.h"

namespace shim {

struct Entry {
    void* kernel;
    Launcher launcher;
};

static std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> all;
    return all;
}

void register_kernel(const char* name, void* kernel, Launcher launcher) { kernels()[name] = {kernel, launcher}; }

}  // namespace shim

namespace {

struct File {
    FILE* file;
    File(const char* path, const char* mode) : file(fopen(path, mode)) {
        if (file == nullptr) shim::fail("cannot open %s", path);
    }
    ~File() { fclose(file); }
    void read(void* data, size_t bytes) {
        if (bytes > 0 && fread(data, 1, bytes, file) != bytes) shim::fail("request ends early");
    }
    int64_t integer() {
        int64_t value;
        read(&value, sizeof(value));
        return value;
    }
    std::string text() {
        std::string text(integer(), '\0');
        read(text.data(), text.size());
        return text;
    }
};

struct Buffer {
    char* allocation = nullptr;
    char* data = nullptr;
    size_t bytes = 0;
};

char* map_file(const std::string& path, size_t bytes) {
    const int descriptor = open(path.c_str(), O_RDWR);
    void* data = descriptor < 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) shim::fail("cannot map %s", path.c_str());
    close(descriptor);
    return static_cast<char*>(data);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) shim::fail("usage: launch REQUEST REPLY");
    File request(arguments[1], "rb");
    std::mt19937_64 order(request.integer());
    dim3 grid, block;
    grid.x = request.integer();
    grid.y = request.integer();
    grid.z = request.integer();
    block.x = request.integer();
    const std::string name = request.text();
    std::vector<Buffer> buffers(request.integer());
    std::vector<char*> pointers;
    int number = 0;
    for (Buffer& buffer : buffers) {
        const int64_t bytes = request.integer(), misalignment = request.integer(), initialized = request.integer();
        const std::string path = request.text();
        if (bytes >= 0 && !path.empty()) {
            pointers.push_back(map_file(path, bytes));
        } else if (bytes >= 0) {
            // malloc aligns to 16 bytes; the end is exact, so that the sanitizer's red zone begins right there.
            buffer.allocation = static_cast<char*>(malloc(bytes + misalignment));
            buffer.data = buffer.allocation + misalignment;
            buffer.bytes = bytes;
            request.read(buffer.data, bytes);
            pointers.push_back(buffer.data);
            shim::watch(buffer.data, bytes, initialized != 0, ("tensor " + std::to_string(number)).c_str());
        } else {
            pointers.push_back(nullptr);
        }
        ++number;
    }
    const std::string problem = request.text();
    const auto found = shim::kernels().find(name);
    if (found == shim::kernels().end()) shim::fail("no kernel %s", name.c_str());
    // Structs are read in place: on the heap, where they are aligned.
    std::vector<int64_t> aligned(problem.size() / 8 + 1);
    memcpy(aligned.data(), problem.data(), problem.size());
    shim::run_grid(grid, block, order, found->second.kernel, found->second.launcher, pointers.data(), aligned.data());

    File reply(arguments[2], "wb");
    for (const Buffer& buffer : buffers) {
        if (buffer.data == nullptr) continue;
        fwrite(buffer.data, 1, buffer.bytes, reply.file);
        free(buffer.allocation);
    }
    return 0;
}

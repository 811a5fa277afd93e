// What the fake driver knows of kernels. Test code.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <string>

struct Launch {
    unsigned grid[3], block[3];
    size_t shared_bytes;
    void** args;
};
// Takes the arguments, gives the work.
typedef std::function<std::function<void()>(const Launch&)> Kernel;
const std::map<std::string, Kernel>& kernels();

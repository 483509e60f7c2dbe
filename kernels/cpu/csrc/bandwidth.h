// How fast this machine reads memory: what the bound of a decode step is made from.
#pragma once
#include <cstdint>

namespace ebb {

double read_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace ebb

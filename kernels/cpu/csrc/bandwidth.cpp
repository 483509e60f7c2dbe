#include "bandwidth.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace ebb {

namespace {

// one value of each cache line, four chains of additions
int64_t read_lines(const int64_t* from, int64_t count) {
  int64_t a = 0, b = 0, c = 0, d = 0;
  for (int64_t at = 0; at + 32 <= count; at += 32) {
    a += from[at];
    b += from[at + 8];
    c += from[at + 16];
    d += from[at + 24];
  }
  return a + b + c + d;
}

}  // namespace

double read_bandwidth(int64_t bytes, int threads, double seconds) {
  const int64_t share = bytes / threads / 4096 * 4096;
  if (share <= 0) return 0;
  std::atomic<int64_t> read{0}, sink{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  const auto begun = std::chrono::steady_clock::now();
  for (int thread = 0; thread < threads; ++thread) {
    others.emplace_back([&] {
      std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(4096, static_cast<size_t>(share)), std::free);
      if (!memory) return;
      std::memset(memory.get(), 1, static_cast<size_t>(share));
      while (!stop.load(std::memory_order_relaxed)) {
        sink.fetch_add(read_lines(static_cast<const int64_t*>(memory.get()), share / 8), std::memory_order_relaxed);
        read.fetch_add(share, std::memory_order_relaxed);
      }
    });
  }
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); };
  while (passed() < 0.1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const int64_t before = read.load();
  const double from = passed();
  while (passed() - from < seconds) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const int64_t all = read.load() - before;
  const double took = passed() - from;
  stop.store(true);
  for (auto& other : others) other.join();
  return static_cast<double>(all) / took / 1e9;
}

}  // namespace ebb

#include "pool.h"

#include <pthread.h>
#include <sched.h>

namespace ebb {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void pin(int cpu) {
#if defined(__linux__)
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
#else
  (void)cpu;
#endif
}

// Spins before giving the core away: others may need it, among them the thread that is waited for.
constexpr int kSpins = 2000;

}  // namespace

Pool::Pool(const std::vector<int>& cpus) {
  for (auto& phase : ring_) phase.count.store(0);
  for (size_t at = 1; at < cpus.size(); ++at) workers_.emplace_back([this, at, cpu = cpus[at]] { work(static_cast<int>(at), cpu); });
}

Pool::~Pool() {
  closed_.store(true);
  awake_.fetch_add(1);
  awake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::begin() {
  awake_.fetch_add(1);
  awake_.notify_all();
}

void Pool::end() { awake_.fetch_add(1); }

void Pool::run_shared(int count, Call call, const void* context) {
  const uint32_t number = ++phase_;
  Phase& phase = ring_[number % kRing];
  phase.call = call;
  phase.context = const_cast<void*>(context);
  phase.count.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  phase.done.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(number) << 32, std::memory_order_release);
  while (take(0)) {
  }
  int spins = 0;
  while (phase.done.load(std::memory_order_acquire) != static_cast<uint32_t>(count)) {
    relax();
    if (++spins > kSpins) {
      sched_yield();
      spins = 0;
    }
  }
}

// Does one task of the present phase; false if none is left. A late thread may look at a phase that has ended: it finds
// no task there, and a phase cannot end while one of its tasks runs, so its description stays.
bool Pool::take(int thread) {
  uint64_t seen = ticket_.load(std::memory_order_acquire);
  for (;;) {
    Phase& phase = ring_[(seen >> 32) % kRing];
    if (static_cast<uint32_t>(seen) >= phase.count.load(std::memory_order_relaxed)) return false;
    if (ticket_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      phase.call(phase.context, static_cast<int>(static_cast<uint32_t>(seen)), thread);
      phase.done.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

void Pool::work(int thread, int cpu) {
  pin(cpu);
  while (!closed_.load()) {
    const uint32_t seen = awake_.load();
    if ((seen & 1) == 0) {
      awake_.wait(seen);
      continue;
    }
    int spins = 0;
    while ((awake_.load(std::memory_order_relaxed) & 1) != 0 && !closed_.load(std::memory_order_relaxed)) {
      if (take(thread)) {
        spins = 0;
      } else {
        relax();
        if (++spins > kSpins) {
          sched_yield();
          spins = 0;
        }
      }
    }
  }
}

}  // namespace ebb

// Threads that share out the tasks of one phase after another. Knows nothing of what a task does.
//
// A phase ends when its tasks are done, not when every thread has noticed: a thread that the kernel took off its core
// holds up only the task it is in. Threads spin while a step runs and sleep between steps.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace ebb {

class Pool {
 public:
  // `cpus`: one entry a thread, the caller's first; -1 leaves a thread where the kernel puts it. The caller is never
  // pinned: it is a thread of Python's, whose children would inherit that, and on a busy machine it is the one that must
  // be able to go where there is room, since it does the tasks that the others do not come to.
  explicit Pool(const std::vector<int>& cpus);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Wakes the threads for a step, and lets them sleep after it.
  void begin();
  void end();

  // Calls fn(task, thread) for each task in [0, count) and returns when all are done. Only between begin and end.
  template <class Fn>
  void run(int count, Fn&& fn) {
    if (count <= 1 || workers_.empty()) {
      for (int task = 0; task < count; ++task) fn(task, 0);
      return;
    }
    run_shared(count, [](void* context, int task, int thread) { (*static_cast<Fn*>(context))(task, thread); }, &fn);
  }

 private:
  using Call = void (*)(void*, int, int);
  struct Phase {
    Call call;
    void* context;
    std::atomic<uint32_t> count;
    std::atomic<uint32_t> done;
  };

  void run_shared(int count, Call call, const void* context);
  void work(int thread, int cpu);
  bool take(int thread);

  static constexpr int kRing = 4;
  Phase ring_[kRing];
  alignas(64) std::atomic<uint64_t> ticket_{0};  // the phase's number above, the next task below
  alignas(64) std::atomic<uint32_t> awake_{0};   // odd while a step runs
  std::atomic<bool> closed_{false};
  uint32_t phase_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace ebb

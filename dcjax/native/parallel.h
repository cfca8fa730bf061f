// Work on XLA's threads, and a buffer for each thread.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "machine.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Calls f(0), …, f(tasks - 1), on XLA's threads and this one. It waits only for calls that have
// begun, so it ends however busy the other threads are. An exception of f is rethrown here once all
// calls have ended, because they use the caller's stack.
void in_parallel(ffi::ThreadPool& pool, Index tasks, const std::function<void(Index)>& f) {
  struct Shared {
    std::atomic<Index> next{0};
    Index done = 0;
    std::exception_ptr failure;
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, tasks, &f] {
    for (Index i; (i = shared->next++) < tasks;) {
      std::exception_ptr failure;
      try {
        f(i);
      } catch (...) {
        failure = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (failure) shared->failure = failure;
      if (++shared->done == tasks) shared->changed.notify_one();
    }
  };
  Index helpers = std::min<Index>(pool.num_threads(), tasks) - 1;
  try {
    for (Index i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  } catch (const std::bad_alloc&) {
    // Helpers that are scheduled use f: go on with these.
  }
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->done == tasks; });
  if (shared->failure) std::rethrow_exception(shared->failure);
}

// Returns the thread's buffer, which its next task reuses.
float* scratch(Index size) {
  static thread_local std::vector<float> memory;
  if (static_cast<Index>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace

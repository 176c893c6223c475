#include "team.h"

#include <pthread.h>

#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dssnet::cpu {
namespace {

// Members arrive within microseconds of each other unless their processors do something else.
constexpr int SPINS = 2000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Worker threads, and the job they do.
class Pool {
  public:
    // Starts workers until there are `count`, or as many as the system gives. The pool is this caller's.
    int grow(int count) {
        try {
            while (int(workers_.size()) < count) {
                const int rank = int(workers_.size()) + 1;
                workers_.emplace_back([this, rank] { serve(rank); });
            }
        } catch (const std::system_error&) {
        }
        return std::min<int>(count, int(workers_.size()));
    }

    void run(int size, const std::function<void(const Member&)>& work) {
        Barrier barrier(size);
        {
            const std::lock_guard lock(mutex_);
            work_ = &work, barrier_ = &barrier, size_ = size, left_ = size - 1;
            ++job_;
        }
        changed_.notify_all();
        work({0, size, &barrier});
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

  private:
    void serve(int rank) {
        long seen = 0;
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] { return job_ != seen; });
            seen = job_;
            if (rank >= size_) continue;
            const Member member = {rank, size_, barrier_};
            const std::function<void(const Member&)>& work = *work_;
            lock.unlock();
            work(member);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(const Member&)>* work_ = nullptr;
    Barrier* barrier_ = nullptr;
    int size_ = 0, left_ = 0;
    long job_ = 0;
};

// Never destroyed: workers sleep in it until the process ends, and a child's threads are gone after a fork.
Pool* pool = nullptr;
bool pool_is_busy = false;

}  // namespace

std::mutex& fork_safe_mutex() {
    static std::mutex& mutex = []() -> std::mutex& {
        static std::mutex one;
        pthread_atfork([] { one.lock(); }, [] { one.unlock(); },
                       [] {
                           pool = nullptr, pool_is_busy = false;
                           one.unlock();
                       });
        return one;
    }();
    return mutex;
}

void Barrier::wait() noexcept {
    const int round = round_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
        waiting_.store(0, std::memory_order_relaxed);
        {
            const std::lock_guard lock(mutex_);
            round_.store(round + 1, std::memory_order_release);
        }
        changed_.notify_all();
        return;
    }
    for (int spin = 0; spin < SPINS; ++spin) {
        if (round_.load(std::memory_order_acquire) != round) return;
        relax();
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != round; });
}

void run_together(int threads, const std::function<void(int)>& prepare, const std::function<void(const Member&)>& work) {
    Pool* mine = nullptr;
    int size = 1;
    if (threads > 1) {
        const std::lock_guard lock(fork_safe_mutex());
        if (!pool_is_busy) {
            if (!pool) pool = new Pool;
            mine = pool;
            pool_is_busy = true;
        }
    }
    // Gives the pool back however this ends, unless a fork has meanwhile made this another process.
    struct Release {
        Pool* held;
        ~Release() {
            if (!held) return;
            const std::lock_guard lock(fork_safe_mutex());
            if (pool == held) pool_is_busy = false;
        }
    } release{mine};
    if (mine) size = 1 + mine->grow(threads - 1);
    prepare(size);
    if (size == 1) {
        work({0, 1, nullptr});
    } else {
        mine->run(size, work);
    }
}

}  // namespace dssnet::cpu

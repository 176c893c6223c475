// Threads that run one function together.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "maps.h"

namespace dssnet::cpu {

// Where the members of a team wait for each other.
class Barrier {
  public:
    explicit Barrier(int members) : members_(members) {}
    void wait() noexcept;

  private:
    const int members_;
    std::atomic<int> waiting_{0};
    std::atomic<int> round_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

// One thread's place in a team.
struct Member {
    int rank, size;
    Barrier* barrier;

    void wait() const noexcept {
        if (size > 1) barrier->wait();
    }

    // This member's share of `rows`: [first, last). Shares are multiples of `together` where there are enough rows.
    struct Share {
        int first, last;
    };
    Share share(int rows, int together) const {
        const int parts = rows >= 2 * together * size ? (rows + together - 1) / together : rows;
        const int unit = parts == rows ? 1 : together;
        const auto edge = [&](int at) { return int(long(parts) * at / size) * unit; };
        const int last = rank + 1 == size ? rows : edge(rank + 1);
        return {edge(rank), last};
    }
    // This member's share of rows that begin with a group: whole groups of `together`.
    Range share_of_groups(Range rows, int together) const {
        const Share groups = share((rows.count() + together - 1) / together, 1);
        return {std::min(rows.first + groups.first * together, rows.last),
                std::min(rows.first + groups.last * together, rows.last)};
    }
};

// Runs `work` on up to `threads` threads, this one included, and returns when all are done. Fewer take part where
// another call has the threads, or the system gives none; `prepare` is told how many will. `work` must not throw.
//
// The threads sleep between calls. After a fork the child starts its own.
void run_together(int threads, const std::function<void(int size)>& prepare, const std::function<void(const Member&)>& work);

// A lock that a fork waits for, so that the child finds what it guards whole. Held for moments only.
std::mutex& fork_safe_mutex();

}  // namespace dssnet::cpu

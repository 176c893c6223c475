#!/usr/bin/env bash
# With -fsanitize=shift, and with most of what -fsanitize=undefined turns on, g++ 12.2 gives another
# result for a program without undefined behaviour: in (choice ? A : B)[i / 2], where A and B are
# constant arrays of different lengths, the index stays where it was.
#
# Why one would guess otherwise: the sanitizer is there to report what a program does wrong and leaves
# alone what it does right; its reports are believed more than the program. Choosing between two
# arrays and indexing the choice is plain C++. The same program is right without the sanitizer, at
# every level of optimisation, and with g++ 11 and Clang 14 also with it.
#
# What happens: the sums below are 120 without the sanitizer and 60, six times the first element, with
# it. At higher levels of optimisation the index may be any number, and other checks report overflows
# of numbers that no array holds. Pointers to the first elements, chosen before the loop, are right.
#
# Needs g++ 12 as g++-12 or g++ (Debian 12 has 12.2.0-14+deb12u1). Exit status: 0 behaves as told here,
# 1 it has changed, 2 not tried.
set -euo pipefail

compiler=
for name in g++-12 g++; do
    if command -v "$name" >/dev/null && [[ $("$name" -dumpversion) == 12* ]]; then
        compiler=$name
        break
    fi
done
[ -n "$compiler" ] || { echo "not tried: needs g++ 12" >&2; exit 2; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > choice.cpp <<'CPP'
#include <cstdio>

constexpr int A[] = {1, 2}, B[] = {10, 20, 30};

__attribute__((noinline)) int chosen(bool first, int count) {
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += (first ? A : B)[i / 2];
    return sum;
}

__attribute__((noinline)) int by_pointer(bool first, int count) {
    const int* const of = first ? &A[0] : &B[0];
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += of[i / 2];
    return sum;
}

int main(int arguments, char**) {
    std::printf("%d %d\n", chosen(arguments > 1, 6), by_pointer(arguments > 1, 6));
}
CPP
"$compiler" --version | head -1
"$compiler" -std=c++17 -O0 choice.cpp -o plain
"$compiler" -std=c++17 -O0 -fsanitize=shift choice.cpp -o checked
plain=$(./plain)
checked=$(./checked)
echo "without: $plain; with -fsanitize=shift: $checked (the choice, and by a pointer; 10 + 10 + 20 + 20 + 30 + 30 = 120)"
[ "$plain" = "120 120" ] && [ "$checked" = "60 120" ]

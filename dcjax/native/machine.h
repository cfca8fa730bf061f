// The processor's vectors, and how channels are cut into them.

#pragma once

#include <cstdint>
#include <type_traits>

namespace {

using Index = std::int64_t;

// LANES: floats of a vector. TILE: vectors that a tile's sums may take, so that they and their
// operands fit in the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 24;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE = 12;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 24;
#else
constexpr int LANES = 4, TILE = 12;
#endif

// Vectors may lie at any address.
template <int lanes>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
};

template <int lanes>
using Vector = typename VectorOf<lanes>::type;

// The size of the tiles that take what tiles of n leave: 24, 16, 8, …; 12, 8, 4, …; 6, 4, 2, 1.
constexpr int fewer(int n) { return n % 3 ? n / 2 : n / 3 * 2; }

// The rest that two of the smaller tiles take faster than one of n and a remainder, such as 4 and 4
// instead of 6 and 2: a tile of few sums waits for each of them. Zero where n halves.
constexpr int for_two(int n) { return n % 3 ? 0 : 2 * fewer(n); }

// Channels are cut into blocks of `vectors` vectors.
struct Blocks {
  int lanes, vectors;
  Index size() const { return lanes * vectors; }
  Index count(Index channels) const { return (channels + size() - 1) / size(); }
};

Blocks blocks_of(Index channels) {
  if (channels > LANES) return {LANES, 2};  // half a vector is for 16 lanes and few channels only
  if (channels > 8 || LANES <= 8) return {LANES, 1};
  return {8, 1};
}

// Calls f with the blocks as constants.
template <class F>
void with_blocks(Blocks blocks, F&& f) {
  using std::integral_constant;
  if (blocks.vectors == 2)
    f(integral_constant<int, LANES>(), integral_constant<int, 2>());
  else if (blocks.lanes == LANES)
    f(integral_constant<int, LANES>(), integral_constant<int, 1>());
  else
    f(integral_constant<int, 8>(), integral_constant<int, 1>());
}

}  // namespace

// Sums over the kernel: the forward pass, and the gradient by the image.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "machine.h"

namespace {

// out[t, u] = Σ_r Σ_{m < length} in[t · down + r · row + u · right + m] · kernel[r, m], for
// t < height and u < width; the kernel's entries are vectors of `channels`.
struct Correlation {
  Index rows, length;                // of the kernel
  Index row, down, right;            // steps in the input
  Index height, width;               // pixels of the output
  Index out_down, out_right;         // steps between them
  Index channels;
};

// One tile: P pixels of a row, B vectors of channels. The kernel is packed: [r, m, B · lanes].
//
// Three pixels share a pointer, from which the processor reaches them by 0, 1 and 2 steps. Otherwise
// the compiler keeps an offset for each pixel, more than there are registers, and reads them from
// memory for every m. The first empty `asm` hides from it that the pointers are related. The second
// keeps a vector in its register, so that it is not read again for every product.
template <int lanes, int B, int P>
void correlate_tile(const Correlation& how, const float* in, const float* kernel, float* out,
                    Index channels) {
  using V = Vector<lanes>;
  constexpr int pointers = (P + 2) / 3;
  V sums[P][B] = {};
  for (Index r = 0; r < how.rows; ++r) {
    const float* x[pointers];
    for (int q = 0; q < pointers; ++q) {
      x[q] = in + r * how.row + 3 * q * how.right;
      asm("" : "+r"(x[q]));
    }
    for (Index m = 0; m < how.length; ++m, kernel += B * lanes) {
      V k[B];
      for (int b = 0; b < B; ++b) {
        k[b] = *reinterpret_cast<const V*>(kernel + b * lanes);
#if defined(__x86_64__)
        asm("" : "+v"(k[b]));
#elif defined(__aarch64__)
        asm("" : "+w"(k[b]));
#endif
      }
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p)
        for (int b = 0; b < B; ++b) sums[p][b] += x[p / 3][p % 3 * how.right] * k[b];
#pragma GCC unroll 32
      for (int q = 0; q < pointers; ++q) ++x[q];
    }
  }
  for (int p = 0; p < P; ++p, out += how.out_right) {
    if (channels == B * lanes) {
      for (int b = 0; b < B; ++b) *reinterpret_cast<V*>(out + b * lanes) = sums[p][b];
    } else {
      std::memcpy(out, sums[p], channels * sizeof(float));
    }
  }
}

// The pixels of a row from u on: as many tiles of P as there are, then smaller ones.
template <int lanes, int B, int P>
void correlate_row(const Correlation& how, const float* in, const float* kernel, float* out,
                   Index channels, Index u) {
  for (; u + P <= how.width && how.width - u != for_two(P); u += P)
    correlate_tile<lanes, B, P>(how, in + u * how.right, kernel, out + u * how.out_right, channels);
  if constexpr (P > 1)
    correlate_row<lanes, B, fewer(P)>(how, in, kernel, out, channels, u);
}

void correlate(const Correlation& how, const float* in, const float* kernel, float* out) {
  Blocks blocks = blocks_of(how.channels);
  with_blocks(blocks, [&](auto lanes, auto B) {
    // Most rows are powers of two long: take tiles that divide them, if these fill the registers.
    constexpr int P = TILE < 24 ? TILE / B : fewer(TILE / B);
    for (Index first = 0; first < how.channels; first += blocks.size()) {
      Index channels = std::min(blocks.size(), how.channels - first);
      for (Index t = 0; t < how.height; ++t)
        correlate_row<lanes, B, P>(how, in + t * how.down, kernel, out + t * how.out_down + first,
                                   channels, 0);
      kernel += how.rows * how.length * blocks.size();
    }
  });
}

// A kernel as `correlate` reads it: [block, r, m, channels of the block], with zeros for channels
// beyond the last.
template <class Entry>
std::vector<float> packed(Index rows, Index length, Index channels, Entry entry) {
  Blocks blocks = blocks_of(channels);
  std::vector<float> result(blocks.count(channels) * rows * length * blocks.size());
  float* to = result.data();
  for (Index first = 0; first < channels; first += blocks.size())
    for (Index r = 0; r < rows; ++r)
      for (Index m = 0; m < length; ++m, to += blocks.size())
        for (Index o = 0; o < std::min(blocks.size(), channels - first); ++o)
          to[o] = entry(r, m, first + o);
  return result;
}

}  // namespace

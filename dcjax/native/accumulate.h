// Sums over the pixels: the gradient by the kernel.

#pragma once

#include <algorithm>

#include "image.h"
#include "machine.h"

namespace {

// What a tile reads must stay in the nearest cache (32 kB) for the tiles that follow, so large images
// are taken some rows at a time. Where channels are many, the few that a tile reads of each pixel lie
// far apart, at addresses that share a few lines of the cache. Such images are cut into panels: some
// channels of all pixels, then the next.
//
// A tile adds its sums to memory once for each strip, so a strip has many pixels; small images are
// taken several together. Wider vectors need fewer instructions a pixel, hence more pixels.
constexpr Index PANEL = 16;
#if defined(__AVX512F__)
constexpr Index UNCUT = 128, STRIP = 256, TOGETHER = 256;
#else
constexpr Index UNCUT = 64, STRIP = 64, TOGETHER = 128;
#endif

// The pixels that a tile sums over, of one image or more, and the steps between them.
struct Pixels {
  Index images, height, width;
  Index x_image, x_down, x_right;
  Index y_image, y_down, y_right;
};

// The rows of y that are taken at a time: 16 kB of them, and at least STRIP pixels.
Index rows_of_strip(Image y) {
  Index pixels = std::max<Index>(STRIP, 4096 / y.channels);
  return std::min(std::max<Index>(1, pixels / y.width), y.height);
}

// sums[m, o] += Σ_{n, p, q} x[n, p, q, m] · y[n, p, q, o], for m < M and B vectors of o.
//
// It is not inlined, so that the compiler has all registers for it.
template <int lanes, int B, int M>
__attribute__((noinline)) void accumulate_tile(const Pixels& over, const float* x, const float* y,
                                               float* sums) {
  using V = Vector<lanes>;
  V tile[M][B] = {};
  for (Index n = 0; n < over.images; ++n)
    for (Index p = 0; p < over.height; ++p) {
      const float* in = x + n * over.x_image + p * over.x_down;
      const float* out = y + n * over.y_image + p * over.y_down;
      for (Index q = 0; q < over.width; ++q, in += over.x_right, out += over.y_right) {
        V v[B];
        for (int b = 0; b < B; ++b) v[b] = *reinterpret_cast<const V*>(out + b * lanes);
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
          for (int b = 0; b < B; ++b) tile[m][b] += in[m] * v[b];
      }
    }
  for (int m = 0; m < M; ++m)
    for (int b = 0; b < B; ++b, sums += lanes) *reinterpret_cast<V*>(sums) += tile[m][b];
}

// As many tiles of M as there are, then smaller ones. sums: [m, channels of the block].
template <int lanes, int B, int M>
void accumulate(const Pixels& over, const float* x, const float* y, float* sums, Index length) {
  for (; length >= M && length != for_two(M); length -= M, x += M, sums += M * B * lanes)
    accumulate_tile<lanes, B, M>(over, x, y, sums);
  if constexpr (M > 1) accumulate<lanes, B, fewer(M)>(over, x, y, sums, length);
}

}  // namespace

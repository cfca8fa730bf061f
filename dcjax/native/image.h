// Images, channels last, and frames around them.

#pragma once

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace {

struct Image {
  Index height, width, channels;
  Index size() const { return height * width * channels; }
};

// Copies the part of image `a` that frame `b` covers. The frame's corner is at row `top` and column
// `left` of the image, its first channel is `channel`; it is zero outside of the image.
void framed(const float* from, Image a, float* to, Image b, Index top, Index left,
            Index channel = 0) {
  if (!a.size() || !b.size()) {
    std::fill(to, to + b.size(), 0.0f);
    return;
  }
  bool all = a.channels == b.channels;
  if (!top && !left && a.height >= b.height && a.width == b.width && all) {
    std::memcpy(to, from, b.size() * sizeof(float));
    return;
  }
  std::fill(to, to + b.size(), 0.0f);
  Index first = std::max<Index>(0, -left), last = std::min(b.width, a.width - left);
  Index channels = std::min(a.channels - channel, b.channels);
  for (Index row = std::max<Index>(0, -top); row < std::min(b.height, a.height - top); ++row) {
    const float* source = from + ((row + top) * a.width + first + left) * a.channels + channel;
    float* target = to + (row * b.width + first) * b.channels;
    if (all) {
      if (last > first) std::memcpy(target, source, (last - first) * channels * sizeof(float));
      continue;
    }
    for (Index column = first; column < last; ++column) {
      std::memcpy(target, source, channels * sizeof(float));
      source += a.channels;
      target += b.channels;
    }
  }
}

}  // namespace

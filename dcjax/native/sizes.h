// The sizes of a convolution, checked before memory is touched.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "machine.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Sizes = ffi::Span<const Index>;

// No array, image in its frame, stride or padding is larger. All sizes that the passes compute from
// these stay below 2^63.
constexpr Index LARGEST = Index{1} << 40;

std::string text(Sizes sizes) {
  std::string result;
  for (Index size : sizes) result += (result.empty() ? "(" : ", ") + std::to_string(size);
  return result + ")";
}

// Products of doubles do not overflow.
bool fits(double a, double b, double c, double d = 1) { return a * b * c * d <= LARGEST; }

// Throws std::invalid_argument unless y = x * kernel has these sizes. Callers name the arrays that
// they have: a pass gets two of them and computes the third.
void check(Sizes x, Sizes kernel, Sizes y, Sizes strides, Sizes padding) {
  auto expect = [&](bool right, const std::string& wanted) {
    if (right) return;
    throw std::invalid_argument(
        "a compiled convolution expected " + wanted + ", got x (N, H, W, C) = " + text(x) +
        ", kernel (kh, kw, C, O) = " + text(kernel) + ", y (N, h, w, O) = " + text(y) +
        ", strides = " + text(strides) + ", padding (top, bottom, left, right) = " + text(padding) +
        "; dcjax.native.conv_general_dilated calls it with sizes that agree");
  };
  expect(strides.size() == 2 && padding.size() == 4, "two strides and four sizes of padding");
  for (Index stride : strides)
    expect(1 <= stride && stride <= LARGEST, "strides from 1 to 2^40");
  for (Index pad : padding)
    expect(-LARGEST <= pad && pad <= LARGEST, "padding from -2^40 to 2^40");
  for (Sizes shape : {x, kernel, y}) {
    Index most[4];  // a size of zero hides no others
    for (int axis = 0; axis < 4; ++axis) {
      expect(shape[axis] >= 0, "sizes of at least 0");
      most[axis] = std::max<Index>(1, shape[axis]);
    }
    expect(fits(most[0], most[1], most[2], most[3]), "arrays of at most 2^40 elements");
  }
  expect(kernel[0] > 0 && kernel[1] > 0, "a kernel of at least one tap, kh > 0 and kw > 0,");
  expect(y[0] == x[0], "N of y to equal N of x");
  expect(kernel[2] == x[3], "C of the kernel to equal C of x");
  expect(y[3] == kernel[3], "O of y to equal O of the kernel");
  double framed[2], reached[2];
  for (int axis = 0; axis < 2; ++axis) {
    Index window = kernel[axis], stride = strides[axis], size = x[1 + axis];
    Index padded = size + padding[2 * axis] + padding[2 * axis + 1];
    expect(padded >= 0, "padding that cuts no more than the image has");
    Index output = padded < window ? 0 : (padded - window) / stride + 1;
    expect(y[1 + axis] == output,
           std::string(axis ? "w = (W + left + right - kw)" : "h = (H + top + bottom - kh)") +
               " / stride + 1 = " + std::to_string(output));
    framed[axis] = padded + window;
    reached[axis] = output + 2 * (size + window);
  }
  expect(fits(framed[0], framed[1], x[3]) && fits(reached[0], reached[1], y[3]),
         "an image that has at most 2^40 elements in its frame");
}

}  // namespace

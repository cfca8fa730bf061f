// Two-dimensional convolutions of channels-last float32 images and their two gradients, for XLA's
// CPU backend.
//
// With x padded, y[p, q] = Σ_i Σ_j Σ_c x[s p + i, s q + j, c] K[i, j, c]. In memory the pairs (j, c)
// of an image's row follow one another. So each row i of the kernel is one matrix product over
// m = (j, c), of rows of x that overlap. Such products are computed tile by tile: the sums of some
// pixels and some channels stay in registers. The gradient by the image is the same sum with y for
// x, once for each of the s × s combs of the image's pixels. The gradient by the kernel sums over
// the pixels.
//
// `down` and `right` are the strides, `top` and `left` the zeros around the image.
//
// Sums are split by the shapes alone, never by the number of threads: results are reproducible.

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "accumulate.h"
#include "correlate.h"
#include "image.h"
#include "machine.h"
#include "parallel.h"
#include "sizes.h"
#include "xla/ffi/api/ffi.h"

namespace {

using Array = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::Result<Array>;

Image image_of(ffi::Span<const Index> shape) { return {shape[1], shape[2], shape[3]}; }

// The images of a task: about 256 kB, which outweigh the task's overhead, or fewer where that would
// leave threads without work.
Index images_of_task(ffi::ThreadPool& pool, Index images, Index size) {
  Index some = std::max<Index>(1, 65536 / std::max<Index>(1, size));
  Index threads = std::max<Index>(1, pool.num_threads());
  return std::min(some, (images + threads - 1) / threads);
}

// Runs a pass and returns its exceptions as XLA's errors.
template <class Pass>
ffi::Error run(Pass&& pass) {
  try {
    pass();
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a convolution");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
}

void forward(ffi::ThreadPool& pool, Array x, Array kernel, Result y, Index down, Index right,
             Index top, Index left) {
  Image from = image_of(x.dimensions()), to = image_of(y->dimensions());
  Index images = x.dimensions()[0], rows = kernel.dimensions()[0], columns = kernel.dimensions()[1];
  if (!y->element_count()) return;
  Image padded{(to.height - 1) * down + rows, (to.width - 1) * right + columns, from.channels};
  Index length = columns * from.channels, row = padded.width * padded.channels;
  Correlation how{rows,      length,    row,
                  down * row, right * from.channels, to.height,
                  to.width,  to.width * to.channels, to.channels,
                  to.channels};
  const float* k = kernel.typed_data();
  auto weights = packed(rows, length, to.channels, [&](Index r, Index m, Index o) {
    return k[(r * length + m) * to.channels + o];
  });
  Index each = images_of_task(pool, images, std::max(from.size(), to.size()));
  in_parallel(pool, (images + each - 1) / each, [&](Index task) {
    float* inside = scratch(padded.size());
    for (Index n = task * each; n < std::min(images, (task + 1) * each); ++n) {
      framed(x.typed_data() + n * from.size(), from, inside, padded, -top, -left);
      correlate(how, inside, weights.data(), y->typed_data() + n * to.size());
    }
  });
}

// Along one axis, the image's pixels `first`, `first + step`, … that the same taps of the kernel
// reach: pixel t of these sums `taps` pixels of the output from `start + t` on, with the kernel's
// entries `residue + step · (taps - 1)`, …, `residue`.
struct Comb {
  Index residue, step, first, count, taps, start;
};

Comb comb_of(Index first, Index step, Index pad, Index size, Index kernel, Index output) {
  Index at = first + pad, residue = (at % step + step) % step;
  Index count = (size - first + step - 1) / step;
  Index taps = residue < kernel ? (kernel - residue + step - 1) / step : 0;
  Index start = (at - residue) / step - (taps - 1);
  // Large padding moves combs off the output, as far as it is large. Their sums have no terms.
  bool apart = start >= output || start + count - 1 + taps <= 0;
  if (apart) taps = start = 0;
  return {residue, step, first, count, taps, start};
}

std::vector<Comb> combs_of(Index step, Index pad, Index size, Index kernel, Index output) {
  std::vector<Comb> combs;
  for (Index first = 0; first < std::min(step, size); ++first)
    combs.push_back(comb_of(first, step, pad, size, kernel, output));
  return combs;
}

// The pixels of the output that combs read.
struct Reach {
  Index begin, end;
};

Reach reach_of(const std::vector<Comb>& combs) {
  Reach reach{0, 0};
  for (const Comb& each : combs) {
    reach.begin = std::min(reach.begin, each.start);
    reach.end = std::max(reach.end, each.start + std::max<Index>(0, each.count - 1 + each.taps));
  }
  return reach;
}

void by_image(ffi::ThreadPool& pool, Array y, Array kernel, Result x, Index down, Index right,
              Index top, Index left) {
  Image from = image_of(y.dimensions()), to = image_of(x->dimensions());
  Index images = y.dimensions()[0], rows = kernel.dimensions()[0], columns = kernel.dimensions()[1];
  if (!x->element_count()) return;
  auto vertical = combs_of(down, top, to.height, rows, from.height);
  auto horizontal = combs_of(right, left, to.width, columns, from.width);
  Reach rows_read = reach_of(vertical), columns_read = reach_of(horizontal);
  Image padded{rows_read.end - rows_read.begin, columns_read.end - columns_read.begin,
               from.channels};
  Index row = padded.width * padded.channels;

  struct Part {
    Correlation how;
    Index in, out;
    std::vector<float> weights;
  };
  std::vector<Part> parts;
  const float* k = kernel.typed_data();
  for (const Comb& v : vertical)
    for (const Comb& h : horizontal) {
      Correlation how{v.taps,
                      h.taps * from.channels,
                      row,
                      row,
                      from.channels,
                      v.count,
                      h.count,
                      down * to.width * to.channels,
                      right * to.channels,
                      to.channels};
      auto entry = [&](Index r, Index m, Index c) {
        Index i = v.residue + v.step * (v.taps - 1 - r);
        Index j = h.residue + h.step * (h.taps - 1 - m / from.channels);
        return k[((i * columns + j) * to.channels + c) * from.channels + m % from.channels];
      };
      Index in = (v.start - rows_read.begin) * row +
                 (h.start - columns_read.begin) * from.channels;
      Index out = (v.first * to.width + h.first) * to.channels;
      parts.push_back({how, in, out, packed(how.rows, how.length, to.channels, entry)});
    }
  Index each = images_of_task(pool, images, std::max(from.size(), to.size()));
  in_parallel(pool, (images + each - 1) / each, [&](Index task) {
    float* inside = scratch(padded.size());
    for (Index n = task * each; n < std::min(images, (task + 1) * each); ++n) {
      framed(y.typed_data() + n * from.size(), from, inside, padded, rows_read.begin,
             columns_read.begin);
      float* result = x->typed_data() + n * to.size();
      for (const Part& part : parts)
        correlate(part.how, inside + part.in, part.weights.data(), result + part.out);
    }
  });
}

void by_kernel(ffi::ThreadPool& pool, Array x, Array y, Result kernel, Index down, Index right,
               Index top, Index left) {
  Image from = image_of(x.dimensions()), to = image_of(y.dimensions());
  Index images = x.dimensions()[0];
  Index rows = kernel->dimensions()[0], columns = kernel->dimensions()[1];
  Index size = kernel->element_count();
  float* result = kernel->typed_data();
  if (!size || !y.element_count()) {
    std::fill(result, result + size, 0.0f);
    return;
  }
  Blocks cut = blocks_of(to.channels);
  Index block = cut.size(), blocks = cut.count(to.channels);

  // One step takes a strip of rows: of x a panel, in its frame; of y all blocks in place, or each
  // block as a panel. Images that are taken together are one strip each.
  Image out{to.height, to.width, to.channels > UNCUT ? block : blocks * block};
  out.height = rows_of_strip(out);
  Image in{(out.height - 1) * down + rows, (to.width - 1) * right + columns,
           from.channels > UNCUT ? PANEL : from.channels};
  Index x_panels = (from.channels + in.channels - 1) / in.channels;
  Index y_panels = blocks * block / out.channels;
  bool as_is = out.channels == to.channels;

  // sums: [part, panel of x, i, block, m = (j, c), channels of the block].
  Index length = columns * in.channels, of_block = length * block, of_row = blocks * of_block;
  Index kernel_rows = x_panels * rows, of_part = kernel_rows * of_row;

  // Each part of the batch has its sums, which are added in their order at the end: as many parts
  // as fit in 4 MB, at least two and at most 16. Where parts are few, several threads divide the
  // kernel's rows of a part; the sums of a row do not depend on the thread.
  Index most = std::max<Index>(2, (Index{1} << 20) / of_part);
  Index parts = std::min({images, most, Index{16}});
  Index threads = std::max<Index>(1, pool.num_threads());
  Index shares = threads > 1 ? std::min(kernel_rows, (2 * threads + parts - 1) / parts) : 1;
  Index together = std::min({std::max<Index>(1, TOGETHER / (to.height * to.width)),
                             (images + parts - 1) / parts, std::max<Index>(1, 65536 / in.size())});
  std::unique_ptr<float[]> sums(new float[parts * of_part]);
  in_parallel(pool, parts * shares, [&](Index task) {
    Index part = task / shares, share = task % shares;
    Index first = share * kernel_rows / shares, last = (share + 1) * kernel_rows / shares;
    float* mine = sums.get() + part * of_part;
    std::fill(mine + first * of_row, mine + last * of_row, 0.0f);
    float* x_panel = scratch(together * (in.size() + (as_is ? 0 : y_panels * out.size())));
    float* y_copied = x_panel + together * in.size();
    Index row = in.width * in.channels;
    Pixels over{0,          0,          out.width,
                in.size(),  down * row, right * in.channels,
                out.size(), out.width * out.channels, out.channels};
    Index end = (part + 1) * images / parts;
    for (Index n = part * images / parts; n < end; n += together)
      for (Index p = 0; p < to.height; p += out.height) {
        over.images = std::min(together, end - n);
        over.height = std::min(out.height, to.height - p);
        const float *xs = x.typed_data() + n * from.size(), *ys = y.typed_data() + n * to.size();
        for (Index panel = 0; panel < y_panels && !as_is; ++panel)
          for (Index k = 0; k < over.images; ++k)
            framed(ys + k * to.size(), to, y_copied + (panel * together + k) * out.size(), out, p,
                   0, panel * out.channels);
        const float* y_strip = as_is ? ys + p * over.y_down : y_copied;
        Index next = y_panels > 1 ? together * out.size() : block;
        for (Index r = first; r < last; ++r) {
          if (r == first || r % rows == 0)
            for (Index k = 0; k < over.images; ++k)
              framed(xs + k * from.size(), from, x_panel + k * in.size(), in, p * down - top, -left,
                     r / rows * in.channels);
          with_blocks(cut, [&](auto lanes, auto B) {
            for (Index b = 0; b < blocks; ++b)
              accumulate<lanes, B, TILE / B>(over, x_panel + r % rows * row, y_strip + b * next,
                                             mine + r * of_row + b * of_block, length);
          });
        }
      }
  });
  in_parallel(pool, kernel_rows, [&](Index r) {
    float* total = sums.get() + r * of_row;
    for (Index part = 1; part < parts; ++part)
      for (Index e = 0; e < of_row; ++e) total[e] += total[part * of_part + e];
    Index first = r / rows * in.channels, channels = std::min(in.channels, from.channels - first);
    for (Index b = 0; b < blocks; ++b)
      for (Index j = 0; j < columns; ++j)
        for (Index c = 0; c < channels; ++c) {
          Index entry = (r % rows * columns + j) * from.channels + first + c;
          std::memcpy(result + entry * to.channels + b * block,
                      total + b * of_block + (j * in.channels + c) * block,
                      std::min(block, to.channels - b * block) * sizeof(float));
        }
  });
}

}  // namespace

// `x`, `kernel` and `y` are the places of the three arrays among a, b and the result.
#define DCJAX_PASS(name, pass, x, kernel, y)                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                               \
      name,                                                                                    \
      [](ffi::ThreadPool pool, Array a, Array b, Result result, Sizes strides, Sizes padding) { \
        return run([&] {                                                                       \
          check((x).dimensions(), (kernel).dimensions(), (y).dimensions(), strides, padding);  \
          pass(pool, a, b, result, strides[0], strides[1], padding[0], padding[2]);            \
        });                                                                                    \
      },                                                                                       \
      ffi::Ffi::Bind()                                                                         \
          .Ctx<ffi::ThreadPool>()                                                              \
          .Arg<Array>()                                                                        \
          .Arg<Array>()                                                                        \
          .Ret<Array>()                                                                        \
          .Attr<Sizes>("strides")                                                              \
          .Attr<Sizes>("padding"))

DCJAX_PASS(dcjax_convolution_forward, forward, a, b, *result);
DCJAX_PASS(dcjax_convolution_by_image, by_image, *result, b, a);
DCJAX_PASS(dcjax_convolution_by_kernel, by_kernel, a, *result, b);

// Two-dimensional convolutions of channels-last float32 images and their two gradients, for XLA's
// CPU backend.
//
// With x padded, y[p, q] = Σ_i Σ_j Σ_c x[s p + i, s q + j, c] K[i, j, c]. In memory the pairs (j, c)
// of an image's row follow one another, so that each row i of the kernel is one matrix product over
// m = (j, c), of rows of x that overlap. What follows computes such products tile by tile: some
// pixels and some channels whose sums stay in registers. The gradient by the image is the same sum
// with y for x, once for each of the s × s phases of the image's pixels; the gradient by the kernel
// sums over the pixels what the others sum over m.
//
// `down` and `right` are the strides, `top` and `left` the zeros around the image.
//
// Sums are split by the shapes alone, never by the number of threads: results are reproducible.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Index = std::int64_t;

// --- the machine ---------------------------------------------------------------------------------

// A vector of floats that may lie anywhere. TILE: the vectors that a tile's sums may take, so that
// they and their operands fit in the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 24;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE = 12;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 24;
#else
constexpr int LANES = 4, TILE = 12;
#endif

template <int lanes>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
};

template <int lanes>
using Vector = typename VectorOf<lanes>::type;

// How many a smaller tile takes, for what a tile of n leaves: 24, 16, 8, …; 12, 8, 4, …; 6, 4, 2, 1.
constexpr int fewer(int n) { return n % 3 ? n / 2 : n / 3 * 2; }

// What two of the smaller tiles take better than one of n and the rest: 4 and 4 for 6 and 2, as a
// tile of few sums waits for each of them. Nothing where the smaller one is a half.
constexpr int for_two(int n) { return n % 3 ? 0 : 2 * fewer(n); }

// --- work ----------------------------------------------------------------------------------------

// Calls f(0), …, f(tasks - 1), on XLA's threads and this one. It waits only for calls that have
// begun, so that it ends however busy the other threads are. What one of them throws is thrown here
// once all have ended, for they use what the caller has on its stack.
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
  for (Index i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->done == tasks; });
  if (shared->failure) std::rethrow_exception(shared->failure);
}

// --- images --------------------------------------------------------------------------------------

struct Image {
  Index height, width, channels;
  Index size() const { return height * width * channels; }
};

// An image in a frame of another size, whose corner is at row `top` and column `left` of it, and its
// channels from `channel` on: zeros where there is no image and no channel.
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

// --- sums over the kernel ------------------------------------------------------------------------

// out[t, u] = Σ_r Σ_{m < length} in[t · down + r · row + u · right + m] · kernel[r, m], for
// t < height and u < width; the kernel's entries are vectors of `channels`.
struct Correlation {
  Index rows, length;                // of the kernel
  Index row, down, right;            // steps in the input
  Index height, width;               // pixels of the output,
  Index out_down, out_right;         // steps between them
  Index channels;
};

// One tile: P pixels of a row, B vectors of channels. The kernel is packed: [r, m, B · lanes].
//
// Three pixels share a pointer, from which the processor reaches them by 0, 1 and 2 steps. The
// compiler, left alone, keeps a step for each pixel, more than there are registers: it would read
// them from memory for every m. The empty `asm` keeps it from seeing that the pointers are related;
// that of a vector, from reading it anew for every product.
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

// How the channels are cut: blocks of B vectors.
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

void correlate(const Correlation& how, const float* in, const float* kernel, float* out) {
  Blocks blocks = blocks_of(how.channels);
  with_blocks(blocks, [&](auto lanes, auto B) {
    // Rows are powers of two, mostly: tiles that divide them, where these fill enough registers.
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

// A kernel as `correlate` reads it: [block, r, m, channels of the block], zeros where there are
// none.
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

// --- sums over the pixels ------------------------------------------------------------------------

// What a tile reads has to stay in the nearest cache (32 kB), where the tiles after it find it: of
// large images, some rows at a time. Of an image of many channels a tile reads a few of each pixel,
// far apart, at addresses that share a few lines of the cache. Such images are cut into panels: some
// channels of all pixels, then the next.
constexpr Index PANEL = 16, UNCUT = 64;

// Pixels enough for a tile to multiply often, against the one time that it adds its sums to those in
// memory: of images that have fewer, several are taken together.
constexpr Index PIXELS = 128;

// The pixels that a tile sums over, of one image or more, and the steps between them.
struct Pixels {
  Index images, height, width;
  Index x_image, x_down, x_right;
  Index y_image, y_down, y_right;
};

// The rows of y that are taken at a time: 16 kB of them, and at least 64 pixels.
Index rows_of_strip(Image y) {
  Index pixels = std::max<Index>(PIXELS / 2, 4096 / y.channels);
  return std::min(std::max<Index>(1, pixels / y.width), y.height);
}

// sums[m, o] += Σ_{n, p, q} x[n, p, q, m] · y[n, p, q, o], for m < M and B vectors of o.
//
// Not inlined, so that the compiler has all registers for it.
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

// --- the three passes ----------------------------------------------------------------------------

using Array = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::Result<Array>;

Image image_of(ffi::Span<const Index> shape) { return {shape[1], shape[2], shape[3]}; }

float* scratch(Index size) {
  static thread_local std::vector<float> memory;
  if (static_cast<Index>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// The images a task takes: about 256 kB of them, so that it is worth its overhead, and fewer where
// that would leave threads without work.
Index images_of_task(ffi::ThreadPool& pool, Index images, Index size) {
  Index some = std::max<Index>(1, 65536 / std::max<Index>(1, size));
  Index threads = std::max<Index>(1, pool.num_threads());
  return std::min(some, (images + threads - 1) / threads);
}

// A pass, its exceptions told to XLA, which knows none.
template <class Pass>
ffi::Error told(Pass&& pass) {
  try {
    pass();
    return ffi::Error::Success();
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
// entries `phase + step · (taps - 1)`, …, `phase`.
struct Phase {
  Index phase, step, first, count, taps, start;
};

Phase phase_of(Index phase, Index step, Index pad, Index size, Index kernel) {
  Index first = ((phase - pad) % step + step) % step;
  Index count = first < size ? (size - first + step - 1) / step : 0;
  Index taps = phase < kernel ? (kernel - phase + step - 1) / step : 0;
  return {phase, step, first, count, taps, (first + pad - phase) / step - (taps - 1)};
}

// The pixels of the output that phases read.
struct Reach {
  Index begin, end;
};

Reach reach_of(const std::vector<Phase>& phases) {
  Reach reach{0, 0};
  for (const Phase& each : phases) {
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
  std::vector<Phase> vertical, horizontal;
  for (Index a = 0; a < down; ++a) vertical.push_back(phase_of(a, down, top, to.height, rows));
  for (Index b = 0; b < right; ++b)
    horizontal.push_back(phase_of(b, right, left, to.width, columns));
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
  for (const Phase& v : vertical)
    for (const Phase& h : horizontal) {
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
        Index i = v.phase + v.step * (v.taps - 1 - r);
        Index j = h.phase + h.step * (h.taps - 1 - m / from.channels);
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

  // What is taken at a time: a strip of rows; of x a panel, in its frame; of y all blocks, where they
  // are, or each as a panel. Images that are taken together are one strip each.
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

  // Each part of the batch has sums of its own, which are added up in their order at the end: as
  // many as fit in 4 MB, at least two and at most 16, whatever the number of threads. These share a
  // part where there are few: its kernel's rows, whose sums are the same whoever takes them.
  Index most = std::max<Index>(2, (Index{1} << 20) / of_part);
  Index parts = std::min({images, most, Index{16}});
  Index threads = std::max<Index>(1, pool.num_threads());
  Index shares = threads > 1 ? std::min(kernel_rows, (2 * threads + parts - 1) / parts) : 1;
  Index together = std::min({std::max<Index>(1, PIXELS / (to.height * to.width)),
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

#define DCJAX_PASS(name, pass)                                                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                               \
      name,                                                                                    \
      [](ffi::ThreadPool pool, Array a, Array b, Result result, Index down, Index right,       \
         Index top, Index left) {                                                              \
        return told([&] { pass(pool, a, b, result, down, right, top, left); });                \
      },                                                                                       \
      ffi::Ffi::Bind()                                                                         \
          .Ctx<ffi::ThreadPool>()                                                              \
          .Arg<Array>()                                                                        \
          .Arg<Array>()                                                                        \
          .Ret<Array>()                                                                        \
          .Attr<Index>("down")                                                                 \
          .Attr<Index>("right")                                                                \
          .Attr<Index>("top")                                                                  \
          .Attr<Index>("left"))

DCJAX_PASS(dcjax_convolution_forward, forward);
DCJAX_PASS(dcjax_convolution_by_image, by_image);
DCJAX_PASS(dcjax_convolution_by_kernel, by_kernel);

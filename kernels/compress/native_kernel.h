// Compression of tokens, in vectors. Included by native.cpp once per instruction set: no guard.

#include "scores.h"

#include "dots.h"

// Heads of a token as float32, added up over those of a group: (groups, each).
template <class X>
INLINE void fold(const X* x, const Job& job, float* to) {
  std::fill(to, to + job.width, 0.0f);
  for (int64_t h = 0; h < job.heads; ++h) {
    float* group = to + h / job.shared * job.each;
    const X* head = x + h * job.x_head;
    int64_t i = 0;
    for (; i + WIDTH <= job.dim; i += WIDTH) store(group + i, load(group + i) + load(head + i));
    for (; i < job.dim; ++i) group[i] += static_cast<float>(head[i]);
  }
}

// Nearest integers, ties to even.
INLINE Floats rounded(Floats x) {
  const Floats shift = splat(0x1.8p23f);
  return (x + shift) - shift;
}

// One token: y as it is, or divided by a scale, which is written too.
template <class Y>
INLINE void write(const float* y, const Job& job, int64_t row, Y* values, float* scales) {
  Y* to = values + row * job.out;
  if constexpr (sizeof(Y) > 1) {
    for (int64_t e = 0; e < job.out; ++e) to[e] = y[e];
  } else {
    constexpr bool integers = std::is_same_v<Y, int8_t>;
    Floats most{}, wrong{};  // x - x is 0, or NaN where x is not finite
    for (int64_t e = 0; e < job.out; e += WIDTH) {
      const Floats x = load(y + e);
      most = maximum(most, absolute(x));
      wrong += x - x;
    }
    const float limit = integers ? 127.0f : 448.0f;
    const float scale = largest(most) / limit + total(wrong);
    const bool usable = scale > 0.0f;
    alignas(64) float part[WIDTH];
    for (int64_t e = 0; e < job.out; e += WIDTH) {
      // A scale so small that it has few digits left may be too small.
      const Floats x =
          usable ? minimum(maximum(load(y + e) / scale, splat(-limit)), splat(limit)) : Floats{};
      store(part, integers ? rounded(x) : x);
      for (int64_t i = 0; i < std::min<int64_t>(WIDTH, job.out - e); ++i)
        to[e + i] = static_cast<Y>(part[i]);
    }
    scales[row] = scale;
  }
}

// A token's products, and where it is to be written.
template <class Y>
INLINE void finish(float* y, const Job& job, int64_t t, Y* values, float* scales) {
  if (job.slots[t] < 0) return;
  const int64_t padded = (job.out + WIDTH - 1) / WIDTH * WIDTH;
  for (int64_t e = 0; e < padded; ++e)
    y[e] = e < job.out ? y[e] + (job.bias ? job.bias[e] : 0.0f) : 0.0f;
  write(y, job, job.slots[t], values, scales);
}

// Tokens first to last - 1, one by one.
template <class X, class W, class Y>
void compress(const Job& job, const X* x, const W* weight, Y* values, float* scales, int64_t first,
              int64_t last) {
  const int64_t padded = (job.out + WIDTH - 1) / WIDTH * WIDTH;
  float* folded = scratch(job.width + padded + WIDTH * job.width);
  float *y = folded + job.width, *staged = y + padded;
  const W* rows[WIDTH];
  const float* floats[WIDTH];
  Nothing no;
  for (int64_t t = first; t < last; ++t) {
    fold(x + job.x_at[t], job, folded);
    for (int64_t e = 0; e < job.out; e += WIDTH) {
      for (int64_t i = 0; i < WIDTH; ++i) {
        rows[i] = weight + std::min(e + i, job.out - 1) * job.groups * job.dim;
        floats[i] = staged + i * job.width;
        for (int64_t g = 0; g < job.groups && job.each != job.dim; ++g)
          stage(rows[i] + g * job.dim, job.dim, staged + i * job.width + g * job.each, job.each);
      }
      if (job.each == job.dim)
        dots<1>(folded, rows, job.width, WIDTH, y + e, WIDTH, no);
      else
        dots<1>(folded, floats, job.width, WIDTH, y + e, WIDTH, no);
    }
    finish(y, job, t, values, scales);
  }
}

// Tokens first to last - 1, folded, side by side: what a matrix product takes.
template <class X>
void fold_all(const Job& job, const X* x, int64_t first, int64_t last, float* to) {
  for (int64_t t = first; t < last; ++t) fold(x + job.x_at[t], job, to + (t - first) * job.width);
}

// Products of such tokens (tokens, out).
template <class Y>
void finish_all(const Job& job, const float* products, Y* values, float* scales, int64_t first,
                int64_t last) {
  float* y = scratch(job.out + WIDTH);
  for (int64_t t = first; t < last; ++t) {
    std::copy_n(products + (t - first) * job.out, job.out, y);
    finish(y, job, t, values, scales);
  }
}

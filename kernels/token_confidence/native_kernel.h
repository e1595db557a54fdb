// A piece of a row of logits, in vectors. Included by native.cpp once per instruction set: no
// guard.

#include "../token_confidence/noise.h"

// A block as floats: the mask token and what fills up the last vector are -inf. Returns how many
// vectors it has.
template <class T>
INLINE int64_t stage(const Row<T>& row, int64_t from, float* staged) {
  const int64_t n = std::min(BLOCK, row.n - from);
  int64_t v = 0;
  for (; (v + 1) * WIDTH <= n; ++v) store(staged + v * WIDTH, load(row.x + from + v * WIDTH));
  if (v * WIDTH < n) {
    store(staged + v * WIDTH, load_part(row.x + from + v * WIDTH, n - v * WIDTH, -INF));
    ++v;
  }
  if (row.mask >= from && row.mask < from + n) staged[row.mask - from] = -INF;
  return v;
}

template <class T>
INLINE bool as_it_is(const Row<T>& row, int64_t from) {
  return from + BLOCK <= row.n && (row.mask < from || row.mask >= from + BLOCK);
}

// NaN counts as -inf.
template <class X>
INLINE float largest_of(const X* x, int64_t vectors) {
  Floats a = splat(-INF), b = a;
  int64_t v = 0;
  for (; v + 2 <= vectors; v += 2) {
    a = maximum(load(x + v * WIDTH), a);
    b = maximum(load(x + (v + 1) * WIDTH), b);
  }
  if (v < vectors) a = maximum(load(x + v * WIDTH), a);
  return largest(maximum(a, b));
}

// Sums of the piece so far, relative to its largest logit `m`.
struct Sums {
  float m;
  Floats s, t;
};

INLINE void raise(Sums& sums, float m, float scale) {
  if (sums.m > -INF) {
    const Floats d = maximum(splat(-104.0f), splat((sums.m - m) * scale));
    const Floats weight = exp_between(d);
    sums.t = (sums.t + sums.s * d) * weight;
    sums.s *= weight;
  }
  sums.m = m;
}

template <bool SCALED, class X>
INLINE void add_all(const X* x, int64_t vectors, float scale, Sums& sums) {
  const Floats m = splat(sums.m == -INF ? 0.0f : sums.m), least = splat(-104.0f);
  Floats s = sums.s, t = sums.t;
  for (int64_t v = 0; v < vectors; ++v) {
    Floats d = load(x + v * WIDTH) - m;
    if (SCALED) d *= scale;
    d = maximum(least, d);  // NaN stays one
    const Floats e = exp_between(d);
    s += e;
    t += e * d;
  }
  sums.s = s;
  sums.t = t;
}

template <class X>
INLINE void add(const X* x, int64_t vectors, float scale, Sums& sums) {
  if (scale == 1)
    add_all<false>(x, vectors, scale, sums);
  else
    add_all<true>(x, vectors, scale, sums);
}

// Looks for a better key than that of `piece` among the tokens of a block, whose largest logit is
// `top`. Noise needs u < exp(z - key) to be better: few logarithms are taken.
template <class X>
INLINE void draw_from(const X* x, int64_t vectors, int64_t from, float top, float scale,
                      int64_t first, const Draw& draw, Piece& piece) {
  const float gap = piece.key - top * scale;
  if (gap > MOST_NOISE) return;
  const float limit = std::exp(0.001f - gap) * 0x1p32f;  // with room for rounding
  const Ints most = splat((int32_t)(limit < 0x1p32f ? (uint32_t)limit ^ 0x80000000u : 0x7fffffffu));
  int32_t bits[8 * WIDTH];
  for (int64_t v = 0; v < vectors; v += 4) {
    const int64_t token = first + from + v * WIDTH, skip = token % 4;
    random_bits(draw, (uint32_t)(token / 4), bits);
    if (skip) random_bits(draw, (uint32_t)(token / 4 + WIDTH), bits + 4 * WIDTH);
    for (int64_t i = 0; i < 4 && v + i < vectors; ++i) {
      const Ints drawn = load(bits + skip + i * WIDTH);
      const Floats better = (drawn ^ INT32_MIN) <= most ? splat(1.0f) : Floats{};
      if (!bits_at_least(better, splat(1.0f))) continue;
      const Floats here = load(x + (v + i) * WIDTH);
      const Floats key = maximum(here * scale + gumbel(drawn), splat(-INF));
      const float best = largest(key);
      if (best > piece.key) {
        const int lane = __builtin_ctz(bits_at_least(key, splat(best)));
        piece.key = best;
        piece.token = from + (v + i) * WIDTH + lane;
        piece.x = here[lane];
      }
    }
  }
}

// Of the block that has the largest logit: where it is first, and the largest of the others.
template <class X>
INLINE int64_t find(const X* x, int64_t vectors, float m, float& second) {
  int64_t at = 0;
  while (!bits_at_least(load(x + at * WIDTH), splat(m))) ++at;
  const int lane = __builtin_ctz(bits_at_least(load(x + at * WIDTH), splat(m)));
  Floats rest = splat(second);
  for (int64_t v = 0; v < vectors; ++v) {
    Floats here = load(x + v * WIDTH);
    if (v == at) here = lane_numbers() == splat((int32_t)lane) ? splat(-INF) : here;
    rest = maximum(here, rest);
  }
  second = largest(rest);
  return at * WIDTH + lane;
}

// Sums up the tokens of a row, the first of which is token `first` of the vocabulary.
template <class T>
void sum_up(const Row<T>& row, int64_t first, float scale, const Draw* draw, Piece& piece) {
  float staged[BLOCK];
  Sums sums{-INF, {}, {}};
  int64_t best = -1;
  piece = {-INF, 0, 0, -INF, -INF, -INF, row.mask == 0};
  for (int64_t from = 0; from < row.n; from += BLOCK) {
    const bool direct = as_it_is(row, from);
    const int64_t vectors = direct ? BLOCK / WIDTH : stage(row, from, staged);
    const float top = direct ? largest_of(row.x + from, vectors) : largest_of(staged, vectors);
    piece.second = std::max(piece.second, std::min(top, sums.m));
    if (top > sums.m) {
      raise(sums, top, scale);
      best = from;
    }
    if (direct)
      add(row.x + from, vectors, scale, sums);
    else
      add(staged, vectors, scale, sums);
    if (draw) {
      if (direct)
        draw_from(row.x + from, vectors, from, top, scale, first, *draw, piece);
      else
        draw_from(staged, vectors, from, top, scale, first, *draw, piece);
    }
  }
  piece.m = sums.m;
  piece.s = total(sums.s);
  piece.t = total(sums.t);
  if (best >= 0) {
    const bool direct = as_it_is(row, best);
    const int64_t vectors = direct ? BLOCK / WIDTH : stage(row, best, staged);
    const int64_t token = best + (direct ? find(row.x + best, vectors, sums.m, piece.second)
                                         : find(staged, vectors, sums.m, piece.second));
    if (!draw) {
      piece.token = token;
      piece.key = piece.x = sums.m;
    }
  }
  piece.token += first;
}

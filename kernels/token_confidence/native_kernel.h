// A piece of a row of logits, in vectors. Included by native.cpp once per instruction set: no
// guard.

#include "../token_confidence/noise.h"

// 2^y for y <= 127 to 2 ulp, exactly 1 at 0; 0 for -inf, NaN for NaN.
// y = n + f with 0 <= f < 1, and 2^f = 1 + f p(f) with p fitted.
INLINE Floats power_of_two(Floats y) {
#if VECTOR_BYTES == 64
  const Floats f = (Floats)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEG_INF);
#else
  const float shift = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  y = maximum(splat(-150.0f), y);
  Floats n = (y + shift) - shift;
  n -= n > y ? splat(1.0f) : Floats{};
  const Floats f = y - n;
#endif
  Floats p = f * 1.867130213e-3f + 9.017030019e-3f;
  p = p * f + 5.579991332e-2f;
  p = p * f + 2.401644501e-1f;
  p = p * f + 6.931513118e-1f;
  p = p * f + 1.0f;
#if VECTOR_BYTES == 64
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)y);  // by the floor of y
#else
  // In two steps, for results below 2^-126.
  const Ints power = __builtin_convertvector(n, Ints), half = power >> 1;
  return p * (Floats)((half + 127) << 23) * (Floats)((power - half + 127) << 23);
#endif
}

// A block as floats: the mask token and what fills up the last two vectors are -inf. Returns how
// many vectors it has.
template <class T>
INLINE int64_t stage(const Row<T>& row, int64_t from, float* staged) {
  const int64_t n = std::min(BLOCK, row.n - from);
  int64_t v = 0;
  for (; (v + 1) * WIDTH <= n; ++v) store(staged + v * WIDTH, load(row.x + from + v * WIDTH));
  if (v * WIDTH < n) {
    store(staged + v * WIDTH, load_part(row.x + from + v * WIDTH, n - v * WIDTH, -INF));
    ++v;
  }
  if (v % 2) store(staged + v++ * WIDTH, splat(-INF));
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
  Floats a = splat(-INF), b = a, here, next;
  for (int64_t v = 0; v < vectors; v += 2) {
    load_two(x + v * WIDTH, here, next);
    a = maximum(here, a);
    b = maximum(next, b);
  }
  return largest(maximum(a, b));
}

// With y = (x - base) scale log2(e), the sums of 2^y and of y 2^y. The base is a logit of the piece
// and not above the largest by then: one pass over a block gives its largest and its sums.
struct Sums {
  float base;
  Floats s, t;
};

// Adds a block and returns its largest.
template <bool ENTROPY, class X>
INLINE float add(const X* x, int64_t vectors, float rate, Sums& sums) {
  const Floats base = splat(sums.base), least = splat(-150.0f);  // 2^-150 is 0; 0 times -inf is not
  Floats a = splat(-INF), b = a, s = sums.s, s2 = {}, t = sums.t, here, next;
  for (int64_t v = 0; v < vectors; v += 2) {
    load_two(x + v * WIDTH, here, next);
    a = maximum(here, a);
    b = maximum(next, b);
    const Floats y = (here - base) * rate, y2 = (next - base) * rate;
    const Floats e = power_of_two(y), e2 = power_of_two(y2);
    s += e;
    s2 += e2;
    if (ENTROPY) t += e * maximum(least, y) + e2 * maximum(least, y2);
  }
  sums.s = s + s2;
  sums.t = t;
  return largest(maximum(a, b));
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

// Adds the block at `from` to a piece and to its sums. `best` is where the block with the largest
// logit is.
template <bool ENTROPY, class X>
INLINE void add_block(const X* x, int64_t vectors, int64_t from, float scale, int64_t first,
                      const Draw* draw, Sums& sums, int64_t& best, Piece& piece) {
  const float rate = scale * 1.44269504f;
  if (piece.m == -INF) {
    const float top = largest_of(x, vectors);
    sums.base = top > -INF ? top : 0;
  }
  const Sums before = sums;
  const float top = add<ENTROPY>(x, vectors, rate, sums);
  const float rise = (top - sums.base) * rate;
  // Sums could overflow, and digits of t cancel in the end: from a higher base once more.
  if (rise > (ENTROPY ? 2 : 60)) {
    const Floats weight = power_of_two(splat(-rise));
    sums = {top, before.s * weight, (before.t - before.s * std::min(rise, 150.0f)) * weight};
    add<ENTROPY>(x, vectors, rate, sums);
  }
  piece.second = std::max(piece.second, std::min(top, piece.m));
  if (top > piece.m) {
    piece.m = top;
    best = from;
  }
  if (draw) draw_from(x, vectors, from, top, scale, first, *draw, piece);
}

// Sums up the tokens of a row, the first of which is token `first` of the vocabulary.
template <bool ENTROPY, class T>
void sum_up(const Row<T>& row, int64_t first, float scale, const Draw* draw, Piece& piece) {
  float staged[BLOCK];
  Sums sums{0, {}, {}};
  int64_t best = -1;
  piece = {-INF, 0, 0, -INF, -INF, -INF, row.mask == 0};
  for (int64_t from = 0; from < row.n; from += BLOCK)
    if (as_it_is(row, from))
      add_block<ENTROPY>(row.x + from, BLOCK / WIDTH, from, scale, first, draw, sums, best, piece);
    else
      add_block<ENTROPY>(staged, stage(row, from, staged), from, scale, first, draw, sums, best,
                         piece);
  piece.s = total(sums.s);
  piece.t = total(sums.t) * 0.693147181f;
  if (best >= 0) {
    // From the base to the largest.
    const float d = (sums.base - piece.m) * scale, weight = std::exp(d);
    piece.t = (piece.t + piece.s * d) * weight;
    piece.s *= weight;
    if (piece.s < 1) piece.s = 1;  // the largest alone is 1, but for rounding
    const bool direct = as_it_is(row, best);
    const int64_t vectors = direct ? BLOCK / WIDTH : stage(row, best, staged);
    const int64_t token = best + (direct ? find(row.x + best, vectors, piece.m, piece.second)
                                         : find(staged, vectors, piece.m, piece.second));
    if (!draw) {
      piece.token = token;
      piece.key = piece.x = piece.m;
    }
  }
  piece.token += first;
}

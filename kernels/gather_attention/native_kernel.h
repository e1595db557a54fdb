// Attention of a piece, in vectors. Included by native.cpp once per instruction set: no guard.

#include "scores.h"

#include "dots.h"

// Tokens of a piece, block by block.
struct Block {
  int64_t count = 0;
  int64_t token[BLOCK];
  int64_t place[BLOCK];              // in the window
  int64_t at_k[BLOCK], at_v[BLOCK];  // where the first head's row begins
};

// The next tokens from `at` on that exist; `at` moves behind them.
template <class T>
INLINE void fill(const Step<T>& s, const Piece& p, int64_t& at, Block& block) {
  block.count = 0;
  const int64_t begin = s.ranges.start[p.b];
  const int64_t far_end = p.far ? (*s.far_end)[p.b] : 0;
  for (; at < p.last && block.count < BLOCK; ++at) {
    int64_t token = at;
    if (p.far && at >= s.initial) {
      const int64_t i = p.b * s.listed + at - s.initial;
      token = (*s.index)[i];
      if (token < s.initial || (at > s.initial && token <= (*s.index)[i - 1])) continue;
    }
    if (p.far && token >= far_end) continue;
    const int64_t holder = s.pages.block(p.b, token), row = s.pages.row(token);
    if (holder < 0) continue;
    const int64_t n = block.count++;
    block.token[n] = token;
    block.place[n] = token - begin;
    block.at_k[n] = holder * s.k_strides[0] + row * s.k_strides[1];
    block.at_v[n] = holder * s.v_strides[0] + row * s.v_strides[1];
  }
}

template <class T>
INLINE void stage_rotated(const T* row, const float* cos, const float* sin, int64_t half,
                          float* to) {
  int64_t i = 0;
  for (; i + WIDTH <= half; i += WIDTH) {
    const Floats x = load(row + i), y = load(row + half + i), c = load(cos + i), s = load(sin + i);
    store(to + i, x * c - y * s);
    store(to + half + i, y * c + x * s);
  }
  for (; i < half; ++i) {
    const float x = row[i], y = row[half + i];
    to[i] = x * cos[i] - y * sin[i];
    to[half + i] = y * cos[i] + x * sin[i];
  }
}

// Rows that will be read next, asked for a vector at a time while others are computed with. All at
// once would be more than a core can wait for; one after the other is what memory is fastest at.
template <class T>
struct Ahead {
  const T* rows[BLOCK];
  int64_t width, row = 0, i = 0;
  INLINE void ask() {
    if (i % (64 / (int64_t)sizeof(T)) == 0 && row < BLOCK) __builtin_prefetch(rows[row] + i, 0, 2);
    i += WIDTH;
    if (i >= width) i = 0, ++row;
  }
};

// Scores of a row become weights; what it added up so far is scaled by what is returned.
INLINE float soften(float* s, int64_t tokens, float* best) {
  for (int64_t t = tokens; t < BLOCK; ++t) s[t] = -INF;
  Floats top = load(s);
  for (int64_t t = WIDTH; t < BLOCK; t += WIDTH) top = maximum(top, load(s + t));
  const float before = best[0], now = std::max(before, largest(top));
  const float base = now == -INF ? 0.0f : now;
  Floats sum{};
  for (int64_t t = 0; t < BLOCK; t += WIDTH) {
    const Floats x = load(s + t) - base;
    const Floats e = x == x ? exp_of_negative(x) : x;  // NaN stays
    sum += e;
    store(s + t, e);
  }
  const float scale = before == now ? 1.0f : std::exp(before - base);
  best[0] = now;
  best[1] = best[1] * scale + total(sum);
  return scale;
}

// out = scale * out + weights x values, for ROWS rows and VECTORS vectors of each from `i` on.
template <int ROWS, int VECTORS, class V, class A>
INLINE void mix_part(const float* weights, const V* const* v, int64_t width, int64_t tokens,
                     const float* scale, float* out, int64_t i, A& ahead) {
  Floats sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < VECTORS; ++j) sums[r][j] = load(out + r * width + i + j * WIDTH) * scale[r];
  for (int64_t t = 0; t < tokens; ++t) {
    Floats x[VECTORS];
    for (int j = 0; j < VECTORS; ++j) {
      ahead.ask();
      x[j] = load(v[t] + i + j * WIDTH);
    }
    for (int r = 0; r < ROWS; ++r) {
      const Floats w = splat(weights[r * BLOCK + t]);
      for (int j = 0; j < VECTORS; ++j) sums[r][j] += w * x[j];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < VECTORS; ++j) store(out + r * width + i + j * WIDTH, sums[r][j]);
}

template <int ROWS, class V, class A>
INLINE void mix(const float* weights, const V* const* v, int64_t width, int64_t tokens,
                const float* scale, float* out, A& ahead) {
  int64_t i = 0;
  for (; i + 4 * WIDTH <= width; i += 4 * WIDTH)
    mix_part<ROWS, 4>(weights, v, width, tokens, scale, out, i, ahead);
  for (; i < width; i += WIDTH) mix_part<ROWS, 1>(weights, v, width, tokens, scale, out, i, ahead);
}

// Rows of a block, and those to ask for meanwhile.
template <class K, class V, class AK, class AV>
struct Read {
  const K* const* k;
  const V* const* v;
  AK& next_k;
  AV& next_v;
};

// ROWS rows attend to a block; those that stand before its last token see less of it.
template <int ROWS, class R>
INLINE void attend_rows(const float* q, const R& read, int64_t width, const int64_t* seen,
                        float* out, float* best) {
  float s[ROWS * BLOCK], scale[ROWS];
  int64_t most = 0, least = BLOCK;
  for (int r = 0; r < ROWS; ++r) {
    most = std::max(most, seen[r]);
    least = std::min(least, seen[r]);
  }
  if (!most) return;
  dots<ROWS>(q, read.k, width, most, s, BLOCK, read.next_k);
  for (int r = 0; r < ROWS; ++r) scale[r] = soften(s + r * BLOCK, seen[r], best + 2 * r);
  mix<ROWS>(s, read.v, width, least, scale, out, read.next_v);
  // What a row does not see may be NaN: a weight of zero would not do.
  const float one = 1.0f;
  Nothing no;
  for (int r = 0; r < ROWS && least < most; ++r)
    mix<1>(s + r * BLOCK + least, read.v + least, width, seen[r] - least, &one, out + r * width,
           no);
}

template <class R>
INLINE void attend_rows(int64_t rows, const float* q, const R& read, int64_t width,
                        const int64_t* seen, float* out, float* best) {
  if (rows == 4)
    attend_rows<4>(q, read, width, seen, out, best);
  else if (rows == 2)
    attend_rows<2>(q, read, width, seen, out, best);
  else
    attend_rows<1>(q, read, width, seen, out, best);
}

// The first block has none before it, so all of it is asked for at once.
template <class T>
INLINE void ask_all(const Step<T>& s, const Piece& p, const Block& block) {
  for (int64_t t = 0; t < block.count; ++t)
    for (int64_t h = p.group; h < p.group_end; ++h)
      for (int64_t i = 0; i < s.dim; i += 64 / (int64_t)sizeof(T)) {
        __builtin_prefetch(s.k + block.at_k[t] + h * s.k_strides[2] + i, 0, 2);
        __builtin_prefetch(s.v + block.at_v[t] + h * s.v_strides[2] + i, 0, 2);
      }
}

template <class T>
void attend(const Step<T>& s, const Piece& p) {
  const int64_t width = (s.dim + WIDTH - 1) / WIDTH * WIDTH, heads = p.group_end - p.group;
  const int64_t rows = p.row_end - p.row, half = s.dim / 2;
  float* q = scratch((2 * heads * (rows + 3) + 2 * BLOCK) * width + 2 * heads * (rows + 3));
  float* out = q + heads * (rows + 3) * width;
  float* best = out + heads * (rows + 3) * width;
  float* staged = best + 2 * heads * (rows + 3);
  const T* from = p.far ? s.far_q : s.q;
  std::fill(out, best, 0.0f);
  // Rows that several queries read, or that are rotated or no whole vectors, are read as floats.
  const bool rotate = !p.far && s.cos, stage_v = rows > 4 || width != s.dim,
             stage_k = stage_v || rotate;
  const float* floats[2 * BLOCK];
  for (int64_t t = 0; t < 2 * BLOCK; ++t) floats[t] = staged + t * width;
  if (stage_k) std::fill(staged, staged + 2 * BLOCK * width, 0.0f);
  for (int64_t i = 0; i < heads * (rows + 3); ++i) best[2 * i] = -INF, best[2 * i + 1] = 0.0f;
  for (int64_t g = 0; g < heads; ++g)
    for (int64_t r = 0; r < rows + 3; ++r) {
      float* to = q + (g * (rows + 3) + r) * width;
      std::fill(to, to + width, 0.0f);
      if (r >= rows) continue;
      const int64_t c = (p.row + r) / s.shared,
                    h = (p.group + g) * s.shared + (p.row + r) % s.shared;
      stage(from + p.b * s.q_strides[0] + c * s.q_strides[1] + h * s.q_strides[2], s.dim, to,
            width);
      for (int64_t i = 0; i < s.dim; ++i) to[i] *= s.scale;
    }

  const bool by_token = s.k_strides[2] < s.k_strides[1];
  Block blocks[2];
  int64_t at = p.first;
  fill(s, p, at, blocks[0]);
  ask_all(s, p, blocks[0]);
  const int64_t stands = s.ranges.end[p.b] - s.queries;  // the first query
  for (int now = 0; blocks[now].count; now = !now) {
    const Block &block = blocks[now], &next = blocks[!now];
    fill(s, p, at, blocks[!now]);
    // A prefetch may be dropped where its page is not known yet; a load never is.
    for (int64_t t = 0; t < next.count; ++t) {
      (void)*(const volatile char*)(s.k + next.at_k[t]);
      (void)*(const volatile char*)(s.v + next.at_v[t]);
    }
    for (int64_t g = 0; g < heads; ++g) {
      const int64_t k_head = (p.group + g) * s.k_strides[2],
                    v_head = (p.group + g) * s.v_strides[2];
      const T *rows_k[BLOCK], *rows_v[BLOCK];
      Ahead<T> next_k, next_v;
      next_k.width = next_v.width = s.dim;
      for (int64_t t = 0; t < BLOCK; ++t) {
        const int64_t i = t < block.count ? t : 0;
        rows_k[t] = s.k + block.at_k[i] + k_head;
        rows_v[t] = s.v + block.at_v[i] + v_head;
        // In the order of memory, which for heads side by side is not that of the computation.
        const int64_t n = by_token ? (g * BLOCK + t) / heads : t;
        const int64_t h = p.group + (by_token ? (g * BLOCK + t) % heads : g);
        next_k.rows[t] = n < next.count ? s.k + next.at_k[n] + h * s.k_strides[2] : rows_k[t];
        next_v.rows[t] = n < next.count ? s.v + next.at_v[n] + h * s.v_strides[2] : rows_v[t];
      }
      for (int64_t t = 0; t < block.count && stage_k; ++t) {
        float* to = staged + t * width;
        const int64_t turn = block.place[t] * half;
        if (rotate)
          stage_rotated(rows_k[t], s.cos + turn, s.sin + turn, half, to);
        else
          stage(rows_k[t], s.dim, to, width);
      }
      for (int64_t t = 0; t < block.count && stage_v; ++t)
        stage(rows_v[t], s.dim, staged + (BLOCK + t) * width, width);

      int64_t seen[4];
      for (int64_t r = 0, step; r < rows; r += step) {
        step = rows - r >= 3 ? 4 : rows - r;
        for (int64_t i = 0; i < step; ++i) {
          seen[i] = r + i < rows ? block.count : 0;
          const int64_t place = stands + (p.row + r + i) / s.shared;
          if (!p.far)
            while (seen[i] && block.token[seen[i] - 1] > place) --seen[i];
        }
        const int64_t first = g * (rows + 3) + r;
        const float* queries = q + first * width;
        float *mixed = out + first * width, *b = best + 2 * first;
        Nothing no;
        if (stage_v)
          attend_rows(step, queries,
                      Read<float, float, Nothing, Nothing>{floats, floats + BLOCK, no, no}, width,
                      seen, mixed, b);
        else if (stage_k)
          attend_rows(step, queries,
                      Read<float, T, Ahead<T>, Ahead<T>>{floats, rows_v, next_k, next_v}, width,
                      seen, mixed, b);
        else
          attend_rows(step, queries, Read<T, T, Ahead<T>, Ahead<T>>{rows_k, rows_v, next_k, next_v},
                      width, seen, mixed, b);
      }
    }
  }
  for (int64_t g = 0; g < heads; ++g)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = g * (rows + 3) + r, o = g * rows + r;
      std::copy(out + i * width, out + i * width + s.dim, p.out + o * s.dim);
      std::copy(best + 2 * i, best + 2 * i + 2, p.best + 2 * o);
    }
}

// Pieces of one row as its result: parts `stride` apart, as many as `parts`.
template <class T>
void combine(const float* outs, const float* bests, int64_t parts, int64_t stride, int64_t dim,
             T* out, float* lse) {
  float top = -INF, sum = 0;
  for (int64_t i = 0; i < parts; ++i) top = std::max(top, bests[2 * i * stride]);
  const float base = top == -INF ? 0.0f : top;
  float* acc = scratch(dim + WIDTH);
  std::fill(acc, acc + dim + WIDTH, 0.0f);
  for (int64_t i = 0; i < parts; ++i) {
    const float* b = bests + 2 * i * stride;
    if (b[1] == 0.0f) continue;  // it attended to nothing
    const float weight = std::exp(b[0] - base);
    sum += weight * b[1];
    const float* from = outs + i * stride * dim;
    for (int64_t d = 0; d < dim; d += WIDTH) {
      const Floats x = d + WIDTH <= dim ? load(from + d) : load_part(from + d, dim - d, 0.0f);
      store(acc + d, load(acc + d) + weight * x);
    }
  }
  *lse = top + std::log(sum);
  const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
  T whole[WIDTH];
  for (int64_t d = 0; d < dim; d += WIDTH) {
    store(whole, load(acc + d) * share);
    std::memcpy((void*)(out + d), whole, std::min<int64_t>(WIDTH, dim - d) * sizeof(T));
  }
}

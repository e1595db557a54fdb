// Scores of a tile of tokens, in vectors. Included by native.cpp once per instruction set: no
// guard.

#include "scores.h"

#include "dots.h"

// Asks for keys that lie a little further in memory, a vector at a time.
template <class T>
struct Further {
  const T* at;
  INLINE void ask() {
    __builtin_prefetch(at, 0, 2);
    at += WIDTH;
  }
};

// The keys of n tokens from `first` on: their rows, as they are or as float32; their scales, 0
// where there is no token; and NaN instead of keys that do not exist.
template <class T>
INLINE void find(const Job<T>& job, int64_t b, int64_t first, int64_t n, const T** rows,
                 float* scale) {
  for (int64_t t = 0; t < n; ++t) {
    const int64_t block = job.pages.block(b, first + t), row = job.pages.row(first + t);
    rows[t] = block < 0 ? nullptr : job.k + block * job.k_strides[0] + row * job.k_strides[1];
    if (block < 0)
      scale[t] = std::numeric_limits<float>::quiet_NaN();  // which counts as -inf
    else
      scale[t] =
          job.scale ? job.scale[block * job.scale_strides[0] + row * job.scale_strides[1]] : 1;
  }
}

#if VECTOR_BYTES == 64
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

// Keys of a tile two numbers to a lane, tokens side by side: (width / 2, TILE). No keys are zeros.
inline void pack_pairs(const Job<c10::BFloat16>& job, int64_t n, const c10::BFloat16* const* rows,
                       int32_t* packed) {
  const int64_t each = job.width / job.groups;
  std::memset(packed, 0, job.width / 2 * TILE * sizeof(int32_t));
  for (int64_t t = 0; t < n; ++t) {
    if (!rows[t]) continue;
    for (int64_t g = 0; g < job.groups; ++g) {
      const c10::BFloat16* from = rows[t] + g * job.k_strides[2];
      int32_t* to = packed + g * each / 2 * TILE + t;
      for (int64_t i = 0; i < job.dim; i += 2)
        std::memcpy(to + i / 2 * TILE, from + i, i + 1 < job.dim ? 4 : 2);
    }
  }
}

// Dot products of four queries with a packed tile: (4, TILE).
inline void dots_of_pairs(const c10::BFloat16* q, int64_t width, const int32_t* packed, float* f) {
  constexpr int N = 4, C = TILE / 16;
  __m512 sums[N * C];
#pragma GCC unroll 16
  for (int i = 0; i < N * C; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 2) {
    __m512i keys[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) keys[c] = _mm512_loadu_si512(packed + i / 2 * TILE + c * 16);
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) {
      int32_t pair;
      std::memcpy(&pair, q + r * width + i, sizeof(pair));
      const __m512i query = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        sums[r * C + c] = _mm512_dpbf16_ps(sums[r * C + c], (__m512bh)query, (__m512bh)keys[c]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N * C; ++i) _mm512_storeu_ps(f + i * 16, sums[i]);
}

#pragma GCC pop_options
#endif

// Dot products of some queries with a tile: (4, TILE) or, of a single one, (TILE).
template <class T>
INLINE void dots_of_tile(const Job<T>& job, int64_t b, int64_t n, const T* const* rows,
                         const float* staged, int64_t query, int64_t queries, float* f) {
  const int64_t at = (b * job.padded + query) * job.width;
#if VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    if (job.halves) return dots_of_pairs(job.halves + at, job.width, (const int32_t*)staged, f);
#endif
  const float* q = job.q + at;
  const float* floats[TILE];
  Nothing no;
  if (staged)
    for (int64_t t = 0; t < TILE; ++t) floats[t] = staged + t * job.width;
  if (queries > 1) {
    dots<4>(q, floats, job.width, n, f, TILE, no);
  } else if (staged) {
    dots<1>(q, floats, job.width, n, f, TILE, no);
  } else {
    Further<T> further{rows[0] + AHEAD / (int64_t)sizeof(T)};
    dots<1>(q, rows, job.width, n, f, TILE, further);
  }
}

// f of some queries and a tile of tokens: (rows, TILE), -inf behind the last token.
template <class T>
INLINE void products(const Job<T>& job, int64_t b, int64_t n, const T* const* rows,
                     const float* scale, const float* staged, int64_t query, int64_t queries,
                     float* f) {
  dots_of_tile(job, b, n, rows, staged, query, queries, f);
  for (int64_t r = 0; r < queries; ++r)
    for (int64_t t = 0; t < TILE; t += WIDTH) {
      const Floats x = load(f + r * TILE + t) * load(scale + t);
      const Ints left = splat((int32_t)(n - t));
      store(f + r * TILE + t, lane_numbers() < left ? nan_last(x) : splat(-INF));
    }
}

// Tokens of a tile as float32, heads side by side, each padded to whole vectors.
template <class T>
INLINE void stage_tile(const Job<T>& job, int64_t n, const T* const* rows, float* staged) {
  const int64_t each = job.width / job.groups;
  for (int64_t t = 0; t < n; ++t)
    for (int64_t g = 0; g < job.groups; ++g) {
      float* to = staged + t * job.width + g * each;
      if (rows[t])
        stage(rows[t] + g * job.k_strides[2], job.dim, to, each);
      else
        std::fill(to, to + each, 0.0f);
    }
}

// As what is multiplied takes them.
template <class T>
INLINE void stage_any(const Job<T>& job, int64_t n, const T* const* rows, float* staged) {
#if VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    if (job.halves) return pack_pairs(job, n, rows, (int32_t*)staged);
#endif
  stage_tile(job, n, rows, staged);
}

// Tokens first to last - 1 of sequence b. Without `scores`: the largest f of each query, into
// `best`. With them: the largest of f - best of all queries, or f itself where there is no best.
template <class T>
void score(const Job<T>& job, int64_t b, int64_t first, int64_t last, float* best, float* scores) {
  const T* rows[TILE + WIDTH];
  float scale[TILE], f[4 * TILE], top[TILE];
  const int64_t queries = job.queries[b];
  const bool direct =
      queries == 1 && job.groups == 1 && job.width == job.dim && !job.pages.paged() && !job.halves;
  float* staged = direct ? nullptr : scratch(TILE * job.width);
  std::fill(scale, scale + TILE, 0.0f);
  for (int64_t c = 0; c < queries && !scores; ++c) best[c] = -INF;
  for (int64_t t = first; t < last; t += TILE) {
    const int64_t n = std::min<int64_t>(TILE, last - t);
    find(job, b, t, n, rows, scale);
    for (int64_t i = n; i < TILE + WIDTH; ++i) rows[i] = rows[n - 1];  // read, and not used
    if (staged) stage_any(job, n, rows, staged);
    std::fill(top, top + TILE, -INF);
    for (int64_t c = 0; c < queries; c += 4) {
      const int64_t some = std::min<int64_t>(4, queries - c);
      products(job, b, n, rows, scale, staged, c, queries == 1 ? 1 : some, f);
      for (int64_t r = 0; r < some; ++r)
        if (!scores) {
          Floats most = load(f + r * TILE);
          for (int64_t i = WIDTH; i < TILE; i += WIDTH)
            most = maximum(most, load(f + r * TILE + i));
          best[c + r] = std::max(best[c + r], largest(most));
        } else {
          const Floats least = splat(-INF), over = splat(best ? best[c + r] : 0.0f);
          for (int64_t i = 0; i < TILE; i += WIDTH) {
            Floats x = load(f + r * TILE + i);
            if (best) x = x == least ? x : x == over ? Floats{} : x - over;
            store(top + i, maximum(load(top + i), x));
          }
        }
    }
    if (scores) std::memcpy(scores + t, top, n * sizeof(float));
  }
}

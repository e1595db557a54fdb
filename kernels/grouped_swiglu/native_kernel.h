// Products of a few rows with the channels of an expert, in vectors. Included by native.cpp once
// per instruction set: no guard.

// Channels whose weights are read side by side.
constexpr int SIDE_BY_SIDE = WIDTH >= 16 ? 4 : 2;

template <class T>
INLINE void load_last(const T* p, int64_t n, Floats& a, Floats& b) {
  const int64_t first = std::min<int64_t>(n, WIDTH);
  a = load_part(p, first, 0.0f);
  b = load_part(p + first, n - first, 0.0f);
}

// A row as floats, in the order in which weights W are read, and zeros up to `padded`.
template <class W, class X>
void stage(const X* row, int64_t width, float* to, int64_t padded) {
  Floats a, b;
  for (int64_t k = 0; k < padded; k += 2 * WIDTH) {
    if (k + 2 * WIDTH > width) {
      load_last(row + k, std::max<int64_t>(width - k, 0), a, b);
    } else if (std::is_same_v<X, W>) {
      load_two(row + k, a, b);
    } else {
      a = load(row + k);
      b = load(row + k + WIDTH);
    }
    store(to + k, a);
    store(to + k + WIDTH, b);
  }
}

// N staged rows times C channels of `width` weights: found[c * FEW + r]. Blocks have scales of
// their own, `scales` of each channel. `ahead`: how far behind each channel lies the one that is
// read next.
template <int N, int C, class W>
INLINE void multiply(const float* x, int64_t padded, const W* const* w, const float* const* scales,
                     int64_t width, int64_t ahead, float* found) {
  Floats sums[C * N] = {}, a[N], b[N], p, q;
  for (int64_t k = 0; k < width; k += 2 * WIDTH) {
#pragma GCC unroll 4  // or the sums would be kept in memory
    for (int r = 0; r < N; ++r) {
      a[r] = load(x + r * padded + k);
      b[r] = load(x + r * padded + k + WIDTH);
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      __builtin_prefetch(w[c] + k + ahead, 0, 2);
      if (k + 2 * WIDTH <= width)
        load_two(w[c] + k, p, q);
      else
        load_last(w[c] + k, width - k, p, q);
      if (std::is_same_v<W, c10::Float8_e4m3fn>) {
        const Floats scale = splat(scales[c][k / SCALED]);
        p *= scale;
        q *= scale;
      }
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        sums[c * N + r] += a[r] * p;
        sums[c * N + r] += b[r] * q;
      }
    }
  }
  for (int i = 0; i < C * N; ++i) found[i / N * FEW + i % N] = total(sums[i]);
}

// The products of n staged rows with `count` channels of an expert, a multiple of SIDE_BY_SIDE:
// found[i * FEW + r] is that of row r with channel[i].
template <class W>
INLINE void products(const Weights<W>& weights, int64_t expert, const float* x, int64_t padded,
                     int64_t n, const int64_t* channel, int64_t count, int64_t ahead,
                     float* found) {
  constexpr int C = SIDE_BY_SIDE;
  const float* scale = weights.scale + expert * weights.scale_expert;
  const int64_t width = weights.width, far = ahead * width;
  for (int64_t i = 0; i < count; i += C) {
    const W* w[C];
    const float* scales[C] = {};
    for (int c = 0; c < C; ++c) {
      w[c] = weights.w + expert * weights.expert + channel[i + c] * width;
      if (std::is_same_v<W, c10::Float8_e4m3fn>)
        scales[c] = scale + channel[i + c] / SCALED * weights.scale_row;
    }
    for (int64_t r = 0; r < n; r += ROWS) {
      const float* rows = x + r * padded;
      float* to = found + i * FEW + r;
      switch (std::min<int64_t>(n - r, ROWS)) {
        case 1:
          multiply<1, C>(rows, padded, w, scales, width, far, to);
          break;
        case 2:
          multiply<2, C>(rows, padded, w, scales, width, far, to);
          break;
        case 3:
          multiply<3, C>(rows, padded, w, scales, width, far, to);
          break;
        default:
          multiply<4, C>(rows, padded, w, scales, width, far, to);
      }
    }
    if (std::is_same_v<W, int8_t>)
      for (int64_t j = i; j < i + C; ++j)
        for (int64_t r = 0; r < n; ++r) found[j * FEW + r] *= scale[channel[j]];
  }
}

#if VECTOR_BYTES == 64
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

// 32 weights as bfloat16, zeros where `here` has no bit.
INLINE __m512i load_pairs(const c10::BFloat16* p, __mmask32 here) {
  return _mm512_maskz_loadu_epi16(here, p);
}

INLINE __m512i load_pairs(const int8_t* p, __mmask32 here) {
  const __m256i x = _mm256_maskz_loadu_epi8(here, p);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// As `multiply`, of rows in bfloat16 and weights that are, or become it exactly, two numbers to a
// lane: where the machine has such products, several times as many rows as otherwise take no longer
// than reading the weights.
template <int N, int C, class W>
INLINE void multiply_pairs(const c10::BFloat16* x, int64_t padded, const W* const* w, int64_t width,
                           int64_t ahead, float* found) {
  __m512 sums[C * N];
  __m512i rows[N];
#pragma GCC unroll 32
  for (int i = 0; i < C * N; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < width; k += 32) {
    const __mmask32 here = k + 32 <= width ? 0xffffffff : (1u << (width - k)) - 1;
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) rows[r] = _mm512_loadu_si512(x + r * padded + k);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      __builtin_prefetch(w[c] + k + ahead, 0, 2);
      const __m512i weights = load_pairs(w[c] + k, here);
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r)
        sums[c * N + r] = _mm512_dpbf16_ps(sums[c * N + r], (__m512bh)rows[r], (__m512bh)weights);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < C * N; ++i) found[i / N * FEW + i % N] = _mm512_reduce_add_ps(sums[i]);
}

template <class W>
void products(const Weights<W>& weights, int64_t expert, const c10::BFloat16* x, int64_t padded,
              int64_t n, const int64_t* channel, int64_t count, int64_t ahead, float* found) {
  constexpr int C = SIDE_BY_SIDE;
  const int64_t width = weights.width, far = ahead * width;
  for (int64_t i = 0; i < count; i += C) {
    const W* w[C];
    for (int c = 0; c < C; ++c) w[c] = weights.w + expert * weights.expert + channel[i + c] * width;
    for (int64_t r = 0; r < n; r += PAIRED_ROWS) {
      const c10::BFloat16* rows = x + r * padded;
      float* to = found + i * FEW + r;
      switch (std::min<int64_t>(n - r, PAIRED_ROWS)) {
        case 1:
          multiply_pairs<1, C>(rows, padded, w, width, far, to);
          break;
        case 2:
          multiply_pairs<2, C>(rows, padded, w, width, far, to);
          break;
        case 3:
          multiply_pairs<3, C>(rows, padded, w, width, far, to);
          break;
        case 4:
          multiply_pairs<4, C>(rows, padded, w, width, far, to);
          break;
        case 5:
          multiply_pairs<5, C>(rows, padded, w, width, far, to);
          break;
        default:
          multiply_pairs<6, C>(rows, padded, w, width, far, to);
      }
    }
    if (std::is_same_v<W, int8_t>)
      for (int64_t j = i; j < i + C; ++j)
        for (int64_t r = 0; r < n; ++r)
          found[j * FEW + r] *= weights.scale[expert * weights.scale_expert + channel[j]];
  }
}

#pragma GCC pop_options
#endif

// Rounds and writes the first n of CHANNELS numbers.
template <class X>
INLINE void write(const float* from, int64_t n, X* to) {
  X rounded[CHANNELS];
  for (int64_t i = 0; i < CHANNELS; i += WIDTH) store(rounded + i, load(from + i));
  std::memcpy((void*)to, rounded, n * sizeof(X));
}

// Where gate i is, HALF of them before their ups.
template <int64_t HALF>
INLINE int64_t place(int64_t i) {
  return i / HALF * (2 * HALF) + i % HALF;
}

// silu(gate) * up of n staged rows and the channels `first` to `last` - 1, at most CHANNELS; `h` is
// where the first row's results are.
template <class X, class W, class S>
void up_of_few(const Weights<W>& weights, int64_t expert, const S* x, int64_t padded, int64_t n,
               int64_t first, int64_t last, X* h) {
  constexpr int64_t HALF = SIDE_BY_SIDE / 2;  // gates, and then their ups
  const int64_t inner = weights.channels / 2, pairs = (last - first + HALF - 1) / HALF * HALF;
  int64_t channel[2 * CHANNELS];
  for (int64_t i = 0; i < pairs; ++i) {
    channel[place<HALF>(i)] = std::min(first + i, last - 1);  // the last one again, to fill up
    channel[place<HALF>(i) + HALF] = inner + channel[place<HALF>(i)];
  }
  float found[2 * CHANNELS * FEW], gate[CHANNELS] = {}, up[CHANNELS] = {};
  products(weights, expert, x, padded, n, channel, 2 * pairs, HALF, found);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < last - first; ++i) {
      gate[i] = found[place<HALF>(i) * FEW + r];
      up[i] = found[(place<HALF>(i) + HALF) * FEW + r];
    }
    for (int64_t i = 0; i < CHANNELS; i += WIDTH) {
      const Floats value = load(gate + i);
      store(gate + i, value * sigmoid(value) * load(up + i));
    }
    write(gate, last - first, h + r * inner + first);
  }
}

// The products of n staged rows with the channels `first` to `last` - 1, at most CHANNELS.
template <class X, class W, class S>
void down_of_few(const Weights<W>& weights, int64_t expert, const S* x, int64_t padded, int64_t n,
                 int64_t first, int64_t last, X* y) {
  const int64_t count = (last - first + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE * SIDE_BY_SIDE;
  int64_t channel[CHANNELS];
  for (int64_t i = 0; i < count; ++i) channel[i] = std::min(first + i, last - 1);
  float found[CHANNELS * FEW], row[CHANNELS] = {};
  products(weights, expert, x, padded, n, channel, count, SIDE_BY_SIDE, found);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < last - first; ++i) row[i] = found[i * FEW + r];
    write(row, last - first, y + r * weights.channels + first);
  }
}

// silu(gate) * up of rows that hold both, `inner` of each.
template <class X>
void swiglu(const X* both, int64_t rows, int64_t inner, X* h) {
  for (int64_t r = 0; r < rows; ++r, both += 2 * inner, h += inner) {
    int64_t i = 0;
    for (; i + WIDTH <= inner; i += WIDTH) {
      const Floats gate = load(both + i);
      store(h + i, gate * sigmoid(gate) * load(both + inner + i));
    }
    if (i < inner) {
      const Floats gate = load_part(both + i, inner - i, 0.0f);
      X last[WIDTH];
      store(last, gate * sigmoid(gate) * load_part(both + inner + i, inner - i, 0.0f));
      std::memcpy((void*)(h + i), last, (inner - i) * sizeof(X));
    }
  }
}

// The weights of some channels in the type of the rows.
template <class X, class W>
void dequantise(const Weights<W>& weights, int64_t expert, int64_t first, int64_t last, X* to) {
  for (int64_t c = first; c < last; ++c, to += weights.width) {
    const W* w = weights.w + expert * weights.expert + c * weights.width;
    const float* scale = weights.scale + expert * weights.scale_expert +
                         (std::is_same_v<W, int8_t> ? c : c / SCALED * weights.scale_row);
    for (int64_t k = 0; k < weights.width; k += WIDTH) {
      const Floats s = splat(std::is_same_v<W, int8_t> ? *scale : scale[k / SCALED]);
      const int64_t n = std::min<int64_t>(WIDTH, weights.width - k);
      X rounded[WIDTH];
      store(rounded, (n < WIDTH ? load_part(w + k, n, 0.0f) : load(w + k)) * s);
      std::memcpy((void*)(to + k), rounded, n * sizeof(X));
    }
  }
}

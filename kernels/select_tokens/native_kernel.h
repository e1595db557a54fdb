// The best tokens of a row. Included once per instruction set: no guard.
//
// Blocks of neighbouring tokens are known by their best. The k-th largest of these is a bar: the
// best of k blocks reach it. So the k best tokens are among those that reach it, and only blocks
// whose best does are read again. The k-th largest of what is found there, from the first token to
// the last, is the threshold. With fewer than k blocks all tokens are found.
//
// Floor: the row read once, from memory or the last-level cache.

constexpr int32_t NO_TOKEN = std::numeric_limits<int32_t>::min();  // below the key of -inf

// Scores as integers in the same order: -0 as +0, NaN as -inf.
INLINE Ints ordered(Floats x) {
  const Ints bits = (Ints)x, magnitude = bits & 0x7fffffff, sign = bits >> 31;
  return magnitude > 0x7f800000 ? splat(-0x7f800000) : (magnitude ^ sign) - sign;
}

// One bit per lane.
INLINE uint32_t bits_above(Ints a, Ints b) {
#if VECTOR_BYTES == 64
  return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)(a > b));
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)(a > b));
#else
  uint32_t r = 0;
  for (int i = 0; i < WIDTH; ++i) r |= uint32_t{a[i] > b[i]} << i;
  return r;
#endif
}

// Puts the lanes whose bit is set behind `count` numbers; returns how many these are then. Up to
// WIDTH numbers past them are overwritten.
INLINE int64_t append(int32_t* numbers, int64_t count, Ints x, uint32_t which) {
  store_lanes(numbers + count, x, which);
  return count + __builtin_popcount(which);
}

// Some of a row's n scores. Past its end -inf: k of the n are not worse, and come first.
template <class T>
INLINE Floats scores_at(const T* row, int64_t n, int64_t i) {
  return i + WIDTH <= n ? load(row + i) : load_part(row + i, std::max<int64_t>(n - i, 0), -INF);
}

// Neighbours become one.
INLINE Floats largest_of_pairs(Floats a, Floats b) {
  Ints even, odd;
  for (int i = 0; i < WIDTH; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  return maximum(__builtin_shuffle(a, b, even), __builtin_shuffle(a, b, odd));
}

// Of COUNT blocks from i on, lanes in their order. WHOLE: all of them are in the row.
template <int COUNT, bool WHOLE, class T>
INLINE Floats largest_of_blocks(const T* row, int64_t n, int64_t i, int64_t block) {
  if constexpr (COUNT > 1) {
    const int64_t middle = i + COUNT / 2 * block;
    return largest_of_pairs(largest_of_blocks<COUNT / 2, WHOLE>(row, n, i, block),
                            largest_of_blocks<COUNT / 2, WHOLE>(row, n, middle, block));
  } else {
    Floats top = splat(-INF);  // stays where a score is NaN
    const int64_t end = i + block;
    do top = maximum(WHOLE ? load(row + i) : scores_at(row, n, i), top);
    while ((i += WIDTH) < end);
    return top;
  }
}

// What `count_above` reads past n keys.
INLINE void pad(int32_t* keys, int64_t n) {
  for (int64_t i = n; i < n + 4 * WIDTH; i += WIDTH) store(keys + i, splat(NO_TOKEN));
}

INLINE int64_t count_above(const int32_t* keys, int64_t n, int64_t bound) {
  Ints counts[4] = {};
  for (int64_t i = 0; i < n; i += 4 * WIDTH)
    for (int j = 0; j < 4; ++j) counts[j] -= load(keys + i + j * WIDTH) > splat((int32_t)bound);
  const Ints all = (counts[0] + counts[1]) + (counts[2] + counts[3]);
  int64_t count = 0;
  for (int j = 0; j < WIDTH; ++j) count += all[j];
  return count;
}

INLINE void smallest_and_largest(const int32_t* keys, int64_t n, int64_t& low, int64_t& high) {
  Ints lows = splat(keys[0]), highs = lows;
  const int64_t full = n / WIDTH * WIDTH;
  for (int64_t i = 0; i < full; i += WIDTH) {
    const Ints key = load(keys + i);
    lows = key < lows ? key : lows;
    highs = key > highs ? key : highs;
  }
  low = lows[0], high = highs[0];
  for (int j = 1; j < WIDTH; ++j) {
    low = std::min<int64_t>(low, lows[j]);
    high = std::max<int64_t>(high, highs[j]);
  }
  for (int64_t i = full; i < n; ++i) {
    low = std::min<int64_t>(low, keys[i]);
    high = std::max<int64_t>(high, keys[i]);
  }
}

// A key that at most k of n keys are above and at least k are not below, 1 <= k <= n. Its range is
// halved, by counting, until few keys are in it; these go to `rest`, and so on among them.
INLINE int32_t kth_largest(int32_t* keys, int64_t n, int64_t k, int32_t* rest) {
  int64_t low, high;
  smallest_and_largest(keys, n, low, high);
  pad(keys, n);
  if (count_above(keys, n, low) <= k) return low;
  int64_t not_below = n, above = 0;  // how many keys are not below `low`, and above `high`
  while (low < high) {
    const int64_t middle = (low + high) >> 1, count = count_above(keys, n, middle);
    if (count == k) return middle;
    if (count > k) {
      low = middle + 1;
      not_below = count;
    } else {
      high = middle;
      above = count;
    }
    if (n < 1024 || not_below - above > n / 4) continue;
    int64_t left = 0;
    for (int64_t i = 0; i < n; i += WIDTH) {
      const Ints key = load(keys + i);
      const uint32_t in = bits_above(key, splat((int32_t)low - 1));
      left = append(rest, left, key, in & ~bits_above(key, splat((int32_t)high)));
    }
    pad(rest, left);
    keys = rest;
    n = not_below = left;
    k -= above;
    above = 0;
  }
  return low;
}

// The k best of n tokens, 1 <= k <= n, counted from `first`.
template <class T>
INLINE void select_from(const T* row, int64_t n, int64_t k, int32_t first, const Room& room) {
  int32_t *best = room.best, *blocks_again = room.blocks, *keys = room.keys, *where = room.where;
  // Reading k blocks again takes about as long as finding the k-th largest of their best.
  const int64_t vectors = std::max<int64_t>(1, std::sqrt((double)n / k) * 2 / WIDTH);
  const int64_t block = vectors * WIDTH, blocks = (n + block - 1) / block;
  int64_t found = 0;
  if (blocks < k) {
    for (; found < n; found += WIDTH) {
      store(keys + found, ordered(scores_at(row, n, found)));
      store(where + found, lane_numbers() + (int32_t)found);
    }
    found = n;
  } else {
    for (int64_t b = 0; b < blocks; b += WIDTH) {
      const int64_t i = b * block;
      store(best + b,
            ordered(i + WIDTH * block <= n ? largest_of_blocks<WIDTH, true>(row, n, i, block)
                                           : largest_of_blocks<WIDTH, false>(row, n, i, block)));
    }
    const int32_t bar = kth_largest(best, blocks, k, keys);
    int64_t again = 0;
    for (int64_t b = 0; b < blocks; b += WIDTH)
      again = append(blocks_again, again, lane_numbers() + (int32_t)b,
                     bits_above(load(best + b), splat(bar - 1)));
    int32_t bound = bar - 1;
    int64_t tied = 0;
    for (int64_t j = 0; j < again; ++j) {
      const int64_t b = blocks_again[j], end = std::min((b + 1) * block, n);
      if (best[b] <= bound) continue;
      for (int64_t i = b * block; i < end; i += WIDTH) {
        const Ints key = ordered(scores_at(row, n, i));
        const uint32_t which = bits_above(key, splat(bound));
        append(where, found, lane_numbers() + (int32_t)i, which);
        found = append(keys, found, key, which);
        tied += __builtin_popcount(which & ~bits_above(key, splat(bar)));
        if (tied >= k) bound = bar;  // no more of these can be selected
      }
    }
  }

  const int32_t threshold = kth_largest(keys, found, k, best);
  int64_t ties = k - count_above(keys, found, threshold), taken = 0;
  for (int64_t i = 0; taken < k; i += WIDTH) {
    const Ints key = load(keys + i);
    const uint32_t above = bits_above(key, splat(threshold));
    uint32_t tied = bits_above(key, splat(threshold - 1)) & ~above;
    while (__builtin_popcount(tied) > ties) tied &= ~(1u << (31 - __builtin_clz(tied)));
    ties -= __builtin_popcount(tied);
    taken = append(room.index, taken, load(where + i) + first, above | tied);
  }
}

// The best score of each token and all up to `reach` away, NaN as -inf: the maxima of windows, made
// wider by those of windows beside them, in pieces that stay in the cache.
template <class T>
INLINE void sliding_maximum(const T* row, int64_t n, int64_t reach, float* out, float* window) {
  const int64_t piece = sliding_piece(reach), width = 2 * reach + 1;
  for (int64_t begin = 0; begin < n; begin += piece) {
    const int64_t count = std::min(piece, n - begin), padded = count + 2 * reach;
    const int64_t from = std::max<int64_t>(begin - reach, 0);
    const int64_t inside = std::min(begin + count + reach, n) - from;
    const int64_t before = from - (begin - reach);
    std::fill(window, window + before, -INF);
    for (int64_t i = 0; i < inside; i += WIDTH) {
      const Floats x = scores_at(row + from, inside, i);
      store(window + before + i, x == x ? x : splat(-INF));
    }
    std::fill(window + before + inside, window + padded, -INF);
    for (int64_t wide = 1, step; wide < width; wide += step) {
      step = std::min(wide, width - wide);
      float* to = wide + step < width ? window : out + begin;
      for (int64_t i = 0; i <= padded - wide - step; i += WIDTH)
        store(to + i, maximum(load(window + i), load(window + i + step)));
    }
  }
}

template <class T>
void select_row(const T* row, int64_t n, int64_t k, int64_t reach, int32_t first,
                const Room& room) {
  if (!reach) return select_from(row, n, k, first, room);
  sliding_maximum(row, n, reach, room.pooled, room.window);
  select_from(room.pooled, n, k, first, room);
}

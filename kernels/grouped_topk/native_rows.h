// Any selection: a token at a time, experts in the lanes. A threshold that at least k keys reach
// leaves few candidates, which are ranked by counting.

INLINE Floats load_keys(const float* p, int64_t left) {
  return left >= WIDTH ? load(p) : lane_numbers() < splat((int32_t)left) ? load(p) : splat(-INF);
}

// For every lane of `mine`, whose first is key number `at`: how many of n keys come before it,
// being larger, or equal and of lower number.
INLINE Ints ranks(const float* keys, int64_t n, Floats mine, int64_t at) {
  const Ints number = lane_numbers() + (int32_t)at;
  Ints rank{};
#pragma GCC unroll 4
  for (int64_t j = 0; j < n; ++j) {
    const Floats other = splat(keys[j]);
    rank -= (other > mine) | ((other == mine) & (splat((int32_t)j) < number));
  }
  return rank;
}

struct Before {
  const float* keys;
  bool operator()(int64_t a, int64_t b) const {
    return keys[a] != keys[b] ? keys[a] > keys[b] : a < b;
  }
};

// At most so many candidates are ranked by counting; more, as where most keys tie, are sorted.
constexpr int MANY = 128;
// The threshold is taken from so many maxima, which serves k up to half of that.
constexpr int CLASSES = 64;

// Where to select: `count` runs of `size` keys each, the g-th beginning at start[g] (ascending).
struct Runs {
  const float* keys;
  const int32_t* start;
  int64_t count, size;
};

// At least k keys reach this: the k-th largest of 2k and more maxima over every so many keys.
INLINE float threshold(const Runs& runs, int64_t k) {
  const int64_t pieces = runs.count * ((runs.size + WIDTH - 1) / WIDTH);
  if (pieces == 1) return -INF;  // one vector of candidates: ranking them is all there is to do
  const int64_t parts = std::min((2 * k + WIDTH - 1) / WIDTH, pieces);
  Floats top[CLASSES / WIDTH], one = splat(-INF);
  float tops[CLASSES];
  for (int64_t c = 0; c < parts; ++c) top[c] = one;
  for (int64_t g = 0, c = 0; g < runs.count; ++g)
    for (int64_t i = 0; i < runs.size; i += WIDTH) {
      const Floats x = load_keys(runs.keys + runs.start[g] + i, runs.size - i);
      if (parts == 1) {  // stays in a register
        one = maximum(one, x);
        continue;
      }
      top[c] = maximum(top[c], x);
      c = c + 1 < parts ? c + 1 : 0;
    }
  if (parts == 1) top[0] = one;
  for (int64_t c = 0; c < parts; ++c) store(tops + c * WIDTH, top[c]);
  Floats least = splat(INF);
  for (int64_t c = 0; c < parts; ++c) {
    Ints larger{};
#pragma GCC unroll 4
    for (int64_t j = 0; j < parts * WIDTH; ++j) larger -= splat(tops[j]) > top[c];
    least = minimum(least, larger < splat((int32_t)k) ? top[c] : splat(INF));
  }
  return -largest(-least);
}

// The experts of the k largest keys in order, of those that `limit` allows, if it is given.
inline void sort_row(const Runs& runs, int64_t k, const float* limit, int32_t* chosen) {
  static thread_local std::vector<int32_t> order;
  order.clear();
  for (int64_t g = 0; g < runs.count; ++g)
    for (int32_t id = runs.start[g]; id < runs.start[g] + runs.size; ++id)
      if (!limit || limit[id] == 0.0f) order.push_back(id);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), Before{runs.keys});
  std::copy(order.begin(), order.begin() + k, chosen);
}

// The experts of the k largest keys, in order. Keys are readable for WIDTH past their end.
INLINE void first_largest_row(const Runs& runs, int64_t k, int32_t* chosen) {
  float key[MANY + 2 * WIDTH];
  int32_t id[MANY + 2 * WIDTH], ordered[MANY + 2 * WIDTH];
  int64_t found = 2 * k <= CLASSES ? 0 : MANY + 1;
  if (found == 0) {
    const Floats enough = splat(threshold(runs, k));
    for (int64_t g = 0; g < runs.count && found <= MANY; ++g)
      for (int64_t i = 0; i < runs.size && found <= MANY; i += WIDTH) {
        const int64_t at = runs.start[g] + i;
        const Floats x = load(runs.keys + at);
        uint32_t which = bits_at_least(x, enough);
        if (runs.size - i < WIDTH) which &= (1u << (runs.size - i)) - 1;
        store_lanes(id + found, lane_numbers() + (int32_t)at, which);
        found += __builtin_popcount(which);
      }
  }
  if (found <= MANY) {
    // Whole vectors, filled up with keys that come last: loops of a length that can be predicted.
    store(id + found, splat(runs.start[0]));
    const int64_t filled = (found + WIDTH - 1) / WIDTH * WIDTH;
    for (int64_t i = 0; i < filled; i += WIDTH) {
      Ints at;
      std::memcpy(&at, id + i, sizeof at);
      const Floats x = gather(runs.keys, at);
      store(key + i, lane_numbers() < splat((int32_t)(found - i)) ? x : splat(-INF));
    }
    for (int64_t i = 0; i < filled; i += WIDTH) {
      int32_t rank[WIDTH];
      store(rank, ranks(key, filled, load(key + i), i));
      for (int j = 0; j < WIDTH; ++j) ordered[rank[j]] = id[i + j];
    }
    std::copy(ordered, ordered + k, chosen);
    return;
  }
  sort_row(runs, k, nullptr, chosen);
}

// The same among the experts that `limit` allows; the keys of the others are -inf.
INLINE void first_allowed_row(const Runs& runs, int64_t k, const float* limit, int32_t* chosen) {
  first_largest_row(runs, k, chosen);
  if (!limit) return;
  // One that is left out can only come in by a tie with an allowed key of -inf.
  for (int64_t i = 0; i < k; ++i)
    if (limit[chosen[i]] != 0.0f) return sort_row(runs, k, limit, chosen);
}

INLINE void merge(Floats& first, Floats& second, Floats other_first, Floats other_second) {
  second = maximum(minimum(first, other_first), maximum(second, other_second));
  first = maximum(first, other_first);
}

// Folds ROWS vectors of (largest, second largest) into one pair, in which lane g % ROWS is of row
// g: rows g and g + ROWS / 2 come to share a vector, told apart by one bit of the lane.
template <int ROWS>
INLINE void fold(Floats* first, Floats* second) {
  if constexpr (ROWS > 1) {
    constexpr int D = ROWS / 2;
    const Ints lane = lane_numbers(), upper = (lane & D) != 0;
    const Ints near = upper ? lane + WIDTH - D : lane, far = upper ? lane + WIDTH : lane + D;
#pragma GCC unroll 8
    for (int g = 0; g < D; ++g) {
      const Floats a = __builtin_shuffle(first[g], first[g + D], far);
      const Floats b = __builtin_shuffle(second[g], second[g + D], far);
      first[g] = __builtin_shuffle(first[g], first[g + D], near);
      second[g] = __builtin_shuffle(second[g], second[g + D], near);
      merge(first[g], second[g], a, b);
    }
    fold<D>(first, second);
  }
}

template <int ROWS>
INLINE void score_groups(const float* values, int64_t count, int64_t size, bool top2_sum,
                         float* score) {
  Floats first[ROWS], second[ROWS];
#pragma GCC unroll 16
  for (int g = 0; g < ROWS; ++g) {
    const float* group = values + std::min<int64_t>(g, count - 1) * size;
    first[g] = load_keys(group, size);
    second[g] = splat(-INF);
    for (int64_t i = WIDTH; i < size; i += WIDTH)
      merge(first[g], second[g], load_keys(group + i, size - i), splat(-INF));
  }
  fold<ROWS>(first, second);
  for (int d = ROWS; d < WIDTH; d *= 2)
    merge(first[0], second[0], swap_lanes(first[0], d), swap_lanes(second[0], d));
  store(score, top2_sum && size > 1 ? nan_last(first[0] + second[0]) : first[0]);
}

// score[g] = largest value of group g, or the sum of its two largest.
INLINE void group_scores(const float* values, int64_t groups, int64_t size, bool top2_sum,
                         float* score) {
  for (int64_t g = 0; g < groups; g += WIDTH) {
    const float* first = values + g * size;
    const int64_t count = groups - g;
    if (count <= 4)
      score_groups<4>(first, count, size, top2_sum, score + g);
    else if (WIDTH == 4 || count <= 8)
      score_groups<std::min(8, WIDTH)>(first, count, size, top2_sum, score + g);
    else
      score_groups<WIDTH>(first, count, size, top2_sum, score + g);
  }
}

// The kept groups' first experts, ascending: equal keys stay in order of their index.
INLINE void keep_groups(const float* score, const Options& o, int32_t* start) {
  int64_t found = 0;
  for (int64_t begin = 0; begin < o.groups; begin += WIDTH) {
    int32_t place[WIDTH];
    store(place, ranks(score, o.groups, load(score + begin), begin));
    for (int64_t g = begin; g < std::min<int64_t>(begin + WIDTH, o.groups); ++g) {
      start[found] = g * o.size;  // overwritten if not kept: no branch that no one can predict
      found += place[g - begin] < o.kept;
    }
  }
}

// x + limit: -inf for every expert that is left out.
INLINE void add_limit(const float* x, const float* limit, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; i += WIDTH) store(sum + i, nan_last(load(x + i) + load(limit + i)));
}

// A group with one allowed expert is worth that one's score.
inline void score_alone(const float* values, const float* limit, const Options& o, float* score) {
  for (int64_t g = 0; g < o.groups; ++g) {
    int64_t found = 0, last = 0;
    for (int64_t e = g * o.size; e < (g + 1) * o.size; ++e)
      if (limit[e] == 0.0f) ++found, last = e;
    if (found == 1) score[g] = values[last];
  }
}

template <class T>
void route_rows(const T* logits, int64_t stride, int64_t n, const Options& o, float* weights,
                int32_t* experts) {
  const int64_t vectors = (o.experts + WIDTH - 1) / WIDTH, padded = (vectors + 1) * WIDTH;
  const bool limited = o.kept < o.groups, by_score = o.bias || (limited && o.top2_sum);
  const int64_t slots = (o.top_k + WIDTH - 1) / WIDTH * WIDTH;
  float* x = scratch(5 * padded + 2 * (o.groups + WIDTH) + slots);
  float *s = x + padded, *bias = s + padded, *limit = bias + padded, *allowed = limit + padded;
  float *p = allowed + padded, *score = p + slots;
  int32_t* start = (int32_t*)(score + o.groups + WIDTH);
  for (int64_t g = 0; g < o.groups; ++g) start[g] = g * o.size;
  for (int64_t e = 0; o.bias && e < o.experts; ++e) bias[e] = o.bias[e];
  for (int64_t e = 0; o.limit && e < o.experts; ++e) limit[e] = o.limit[e];

  for (int64_t t = 0; t < n; ++t, weights += o.top_k, experts += o.top_k) {
    const T* row = logits + t * stride;
    load_row(row, o.experts, x);
    Floats top{}, sum{};
    if (o.scoring == Scoring::softmax) softmax_of_row(x, o.experts, top, sum);
    const float *keys = x, *values = x;
    if (by_score) {
      score_all((Floats*)x, vectors, o.scoring, top, sum, (Floats*)s);
      values = s;
    }
    if (o.bias) {
      for (int64_t i = 0; i < o.experts; i += WIDTH)
        store(s + i, nan_last(load(s + i) + load(bias + i)));
      keys = s;
    }

    if (o.limit) {
      if (values != keys) add_limit(values, limit, o.experts, s);
      add_limit(keys, limit, o.experts, allowed);
      values = values == keys ? allowed : s;
      keys = allowed;
    }

    if (limited) {
      group_scores(values, o.groups, o.size, o.top2_sum, score);
      if (o.limit && o.top2_sum) score_alone(values, limit, o, score);
      keep_groups(score, o, start);
    }
    if (o.balanced)
      for (int64_t g = 0; g < o.kept; ++g)
        first_allowed_row({keys, start + g, 1, o.size}, o.per_group, o.limit,
                          experts + g * o.per_group);
    else if (limited)
      first_allowed_row({keys, start, o.kept, o.size}, o.top_k, o.limit, experts);
    else
      first_allowed_row({keys, start, 1, o.experts}, o.top_k, o.limit, experts);

    for (int64_t k = 0; k < o.top_k; ++k) p[k] = x[experts[k]];
    Floats all{};
    for (int64_t k = 0; k < slots; k += WIDTH) {
      Floats w = scored(load(p + k), o.scoring, top, sum);
      w = lane_numbers() < splat((int32_t)(o.top_k - k)) ? w : Floats{};
      all += w;
      store(p + k, w);
    }
    const Floats divisor = splat(o.renormalize ? total(all) + EPSILON : 1.0f);
    for (int64_t k = 0; k < slots; k += WIDTH) store(p + k, load(p + k) / divisor * o.factor);
    for (int64_t k = 0; k < o.top_k; ++k) weights[k] = o.scale ? p[k] * o.scale[experts[k]] : p[k];
  }
}

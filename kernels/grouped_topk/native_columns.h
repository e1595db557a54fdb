// A few experts from every group (MoGE): a token per lane, experts one after the other, so that an
// expert costs a compare and two blends for WIDTH tokens and nothing crosses lanes.

// Experts per group that go this way. Measured against rows: 13 times as fast for one of 8 in each
// of 8 groups, twice for 4 of 32, a tenth slower for 4 of 128 in each of 2.
constexpr int FEW = 4;

// x[e] = logits of expert e, a token per lane; lanes past n repeat the last token.
template <class T>
INLINE void load_columns(const T* logits, int64_t stride, int64_t n, int64_t experts, Floats* x) {
  for (int64_t e = 0; e < experts; e += WIDTH) {
    Floats block[WIDTH];
    const int64_t width = std::min<int64_t>(WIDTH, experts - e);
    for (int t = 0; t < WIDTH; ++t) {
      const T* row = logits + std::min<int64_t>(t, n - 1) * stride + e;
      block[t] = nan_last(width == WIDTH ? load(row) : load_part(row, width, 0.0f));
    }
    transpose(block);
    for (int64_t i = 0; i < width; ++i) x[e + i] = block[i];
  }
}

// The K largest of a group's keys in order: insertion, a new key passing those it is larger than.
template <int K>
INLINE void first_largest_columns(const Floats* key, int64_t begin, int64_t size, Floats* largest,
                                  Ints* chosen) {
  Floats best[K];
  Ints index[K];
  for (int64_t j = 0; j < size; ++j) {
    const Floats x = key[begin + j];
    const Ints id = splat((int32_t)(begin + j));
    const Ints beats = j < K ? splat(-1) : x > best[K - 1];
    const int last = j < K ? j : K - 1;
    best[last] = beats ? x : best[last];
    index[last] = beats ? id : index[last];
#pragma GCC unroll 4
    for (int slot = K - 1; slot > 0; --slot) {
      if (slot > last) continue;
      const Floats a = best[slot - 1], b = best[slot];
      const Ints i = index[slot - 1], passes = b > a;
      best[slot - 1] = passes ? b : a;
      best[slot] = passes ? a : b;
      index[slot - 1] = passes ? index[slot] : i;
      index[slot] = passes ? i : index[slot];
    }
  }
  for (int k = 0; k < K; ++k) {
    largest[k] = best[k];
    chosen[k] = index[k];
  }
}

// out[lane][slot] of a row of `slots` = in[slot][lane], for the first `lanes`.
INLINE void store_columns(const Floats* in, int64_t slots, int64_t lanes, float* out) {
  for (int64_t k = 0; k < slots; k += WIDTH) {
    const int64_t width = std::min<int64_t>(WIDTH, slots - k);
    Floats block[WIDTH];
    for (int i = 0; i < WIDTH; ++i) block[i] = in[k + std::min<int64_t>(i, width - 1)];
    transpose(block);
    for (int64_t i = 0; i < lanes; ++i) store_part(out + i * slots + k, block[i], width);
  }
}

INLINE bool any_lowest(const Floats* keys, int64_t n) {
  Floats least = splat(INF);
  for (int64_t k = 0; k < n; ++k) least = minimum(least, keys[k]);
  return -largest(-least) == -INF;
}

template <class T>
void route_columns(const T* logits, int64_t stride, int64_t n, const Options& o, float* weights,
                   int32_t* experts) {
  for (int64_t t = 0; t < n; t += WIDTH) {
    Floats* x = (Floats*)scratch((3 * o.experts + 2 * o.top_k) * WIDTH);
    Floats *s = x + o.experts, *key = s + o.experts, *p = key + o.experts;
    Ints* chosen = (Ints*)(p + o.top_k);
    const int64_t lanes = std::min<int64_t>(WIDTH, n - t);
    load_columns(logits + t * stride, stride, lanes, o.experts, x);
    Floats top{}, sum{};
    if (o.scoring == Scoring::softmax) {
      top = max_of(x, o.experts);
      sum = sum_of_exp(x, o.experts, top);
    }
    const Floats* keys = x;
    if (o.bias) {
      score_all(x, o.experts, o.scoring, top, sum, s);
      for (int64_t e = 0; e < o.experts; ++e) key[e] = nan_last(s[e] + o.bias[e]);
      keys = key;
    }
    if (o.limit) {
      for (int64_t e = 0; e < o.experts; ++e) key[e] = nan_last(keys[e] + o.limit[e]);
      keys = key;
    }
    for (int64_t g = 0, k = 0; g < o.experts; g += o.size, k += o.per_group) {
      if (o.per_group == 1) first_largest_columns<1>(keys, g, o.size, p + k, chosen + k);
      if (o.per_group == 2) first_largest_columns<2>(keys, g, o.size, p + k, chosen + k);
      if (o.per_group == 3) first_largest_columns<3>(keys, g, o.size, p + k, chosen + k);
      if (o.per_group == 4) first_largest_columns<4>(keys, g, o.size, p + k, chosen + k);
    }

    if (o.limit && any_lowest(p, o.top_k)) {
      // An expert that is left out may tie with one that is not: rows settle that.
      route_rows(logits + t * stride, stride, lanes, o, weights + t * o.top_k,
                 experts + t * o.top_k);
      continue;
    }

    Floats all{};
    for (int64_t k = 0; k < o.top_k; ++k) {
      // Without bias and limit the key is the logit.
      if (o.bias || o.limit) p[k] = gather((float*)x, chosen[k] * WIDTH + lane_numbers());
      all += p[k] = scored(p[k], o.scoring, top, sum);
    }
    for (int64_t k = 0; k < o.top_k; ++k) {
      if (o.renormalize) p[k] /= all + EPSILON;
      p[k] *= o.factor;
      if (o.scale) p[k] *= gather(o.scale, chosen[k]);
    }
    store_columns(p, o.top_k, lanes, weights + t * o.top_k);
    store_columns((Floats*)chosen, o.top_k, lanes, (float*)experts + t * o.top_k);
  }
}

// A few experts from every group (MoGE): a token per lane, experts one after the other, so that an
// expert costs a compare and two blends for WIDTH tokens and nothing crosses lanes.

constexpr int FEW = 4;  // experts per group up to which this wins

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

// The first k of a group's keys in order: insertion, a new key passing those it is larger than.
INLINE void first_largest_columns(const Floats* key, int64_t begin, int64_t size, int64_t k,
                                  Ints* chosen) {
  Floats best[FEW];
  Ints index[FEW];
  for (int64_t j = 0; j < size; ++j) {
    const Floats x = key[begin + j];
    const Ints id = splat((int32_t)(begin + j));
    int64_t slot = std::min(j, k - 1);
    if (j < k) {
      best[slot] = x;
      index[slot] = id;
    } else {
      const Ints beats = x > best[slot];
      best[slot] = beats ? x : best[slot];
      index[slot] = beats ? id : index[slot];
    }
    for (; slot > 0; --slot) {
      const Floats a = best[slot - 1], b = best[slot];
      const Ints i = index[slot - 1], beats = b > a;
      best[slot - 1] = beats ? b : a;
      best[slot] = beats ? a : b;
      index[slot - 1] = beats ? index[slot] : i;
      index[slot] = beats ? i : index[slot];
    }
  }
  for (int64_t i = 0; i < k; ++i) chosen[i] = index[i];
}

INLINE Floats at_columns(const Floats* table, Ints index) {
  Floats r;
  for (int i = 0; i < WIDTH; ++i) r[i] = ((const float*)table)[index[i] * WIDTH + i];
  return r;
}

template <class T>
void route_columns(const T* logits, int64_t stride, int64_t n, const Options& o, float* weights,
                   int32_t* experts) {
  Floats* x = (Floats*)scratch((3 * o.experts + 2 * o.top_k) * WIDTH);
  Floats *s = x + o.experts, *key = s + o.experts, *p = key + o.experts;
  Ints* chosen = (Ints*)(p + o.top_k);
  for (int64_t t = 0; t < n; t += WIDTH) {
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
    for (int64_t g = 0; g < o.groups; ++g)
      first_largest_columns(keys, g * o.size, o.size, o.per_group, chosen + g * o.per_group);

    Floats all{};
    for (int64_t k = 0; k < o.top_k; ++k)
      all += p[k] = scored(at_columns(x, chosen[k]), o.scoring, top, sum);
    for (int64_t k = 0; k < o.top_k; ++k) {
      if (o.renormalize) p[k] /= all + EPSILON;
      p[k] *= o.factor;
      for (int64_t i = 0; i < lanes; ++i) {
        const int32_t e = chosen[k][i];
        experts[(t + i) * o.top_k + k] = e;
        weights[(t + i) * o.top_k + k] = o.scale ? p[k][i] * o.scale[e] : p[k][i];
      }
    }
  }
}

// Two attentions as one, in vectors. Included by native.cpp once per instruction set: no guard.

// Rows first to last - 1 of dim numbers each. What an attention over nothing says is not looked at.
template <class T>
void merge(const T* out_a, const float* lse_a, const T* out_b, const float* lse_b, T* out,
           float* lse, int64_t dim, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const float a = lse_a[r], b = lse_b[r];
    const T *x = out_a + r * dim, *y = out_b + r * dim;
    T* to = out + r * dim;
    if ((a == -INF && b == b) || (b == -INF && a == a)) {
      const bool nothing = a == b;
      lse[r] = a == -INF ? b : a;
      const T* other = a == -INF ? y : x;
      for (int64_t i = 0; i < dim; ++i) to[i] = nothing ? T(0.0f) : other[i];
      continue;
    }
    lse[r] = std::max(a, b) + (a == b ? std::log(2.0f) : std::log1p(std::exp(-std::abs(a - b))));
    const Floats wa = splat(std::exp(a - lse[r])), wb = splat(std::exp(b - lse[r]));
    int64_t i = 0;
    for (; i + WIDTH <= dim; i += WIDTH) store(to + i, load(x + i) * wa + load(y + i) * wb);
    for (; i < dim; ++i)
      to[i] = static_cast<float>(x[i]) * wa[0] + static_cast<float>(y[i]) * wb[0];
  }
}

// Gradients of logits and expert_scale, from the logits: scores are computed again. reference.py
// has the formula. Floor per token: the logits read, their gradients written, for softmax an
// exponential per expert.

INLINE Floats slope(Floats x, Floats s, Scoring scoring) {
  switch (scoring) {
    case Scoring::sigmoid:
      return s * (1.0f - s);
    case Scoring::sqrt_softplus:
      return sigmoid(x) / maximum(2.0f * s, splat(EPSILON));
    default:
      return splat(1.0f);
  }
}

// x becomes exp(x - max), 0 past its end; returns the sum.
INLINE float exponentials(float* x, int64_t n) {
  const int64_t full = n / WIDTH, tail = n - full * WIDTH;
  const Floats top = splat(largest(max_of((const Floats*)x, full + (tail > 0))));
  Floats sum{}, part{};  // in parts: rounding errors grow with the length of a chain of additions
  for (int64_t i = 0; i < full; ++i) {
    const Floats e = exp_of_negative(load(x + i * WIDTH) - top);
    store(x + i * WIDTH, e);
    part += e;
    if (i % 8 < 7) continue;
    sum += part;
    part = Floats{};
  }
  if (tail) {
    Floats e = exp_of_negative(load(x + full * WIDTH) - top);
    e = lane_numbers() < splat((int32_t)tail) ? e : Floats{};
    store(x + full * WIDTH, e);
    part += e;
  }
  return total(sum + part);
}

// The first n values of factor * x.
template <class T>
INLINE void write_scaled(const float* x, float factor, int64_t n, T* out) {
  const int64_t full = n / WIDTH * WIDTH;
  for (int64_t i = 0; i < full; i += WIDTH) store(out + i, load(x + i) * factor);
  if (full == n) return;
  T part[WIDTH];
  store(part, load(x + full) * factor);
  std::memcpy((void*)(out + full), part, (n - full) * sizeof(T));
}

// WIDTH tokens at a time, in three steps: exponentials, a row after the other; what the selected
// experts have to say, a token per lane; the rows of the gradient. One step's stores are done when
// the next one reads them: going token by token would wait for each.
//
// d_logits: n rows of `experts`. d_scale, if there is a scale: added to.
template <class T>
void gradients(const T* logits, int64_t stride, int64_t n, const Gradient& o, const float* grad,
               const int32_t* experts, T* d_logits, double* d_scale) {
  const bool softmax = o.scoring == Scoring::softmax;
  const int64_t padded = (o.experts + WIDTH - 1) / WIDTH * WIDTH, k_lanes = o.top_k * WIDTH;
  // What an expert of -1 has for a logit, so that its score is 0. Softmax gathers exponentials.
  const float nothing = softmax || o.scoring == Scoring::identity ? 0.0f : -INF;
  float* x = scratch(WIDTH * padded + 4 * k_lanes);
  float *at = x + WIDTH * padded, *g = at + k_lanes, *dp = g + k_lanes;
  int32_t* ids = (int32_t*)(dp + k_lanes);
  for (int64_t t = 0; t < n; t += WIDTH) {
    const int64_t lanes = std::min<int64_t>(WIDTH, n - t);
    float sums[WIDTH], factors[WIDTH];
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      float* row = x + lane * padded;
      sums[lane] = 1.0f;
      for (int64_t k = 0; lane >= lanes && k < o.top_k; ++k) {
        ids[k * WIDTH + lane] = -1;
        at[k * WIDTH + lane] = nothing;
        g[k * WIDTH + lane] = 0.0f;
      }
      if (lane >= lanes) continue;
      load_row(logits + (t + lane) * stride, o.experts, row);
      if (softmax) sums[lane] = exponentials(row, o.experts);
      for (int64_t k = 0; k < o.top_k; ++k) {
        const int64_t i = (t + lane) * o.top_k + k;
        const bool real = experts[i] >= 0;
        ids[k * WIDTH + lane] = experts[i];
        at[k * WIDTH + lane] = real ? row[experts[i]] : nothing;
        g[k * WIDTH + lane] = real ? grad[i] * o.factor : 0.0f;
      }
    }

    const Floats sum = load(sums);
    Floats total{};
    for (int64_t k = 0; k < k_lanes; k += WIDTH) {
      const Floats s = softmax ? load(at + k) / sum : scored(load(at + k), o.scoring, sum, sum);
      total += s;
      store(dp + k, s);
    }
    // q = p / sum(p) and dp = (dq - <dq, q>) / sum(p); or q = p and dp = dq.
    const Floats part = o.renormalize ? 1.0f / (total + EPSILON) : splat(1.0f);
    for (int64_t k = 0; o.scale && k < o.top_k; ++k)
      for (int64_t i = k * WIDTH; i < k * WIDTH + lanes; ++i) {
        if (ids[i] < 0) continue;
        d_scale[ids[i]] += g[i] * (dp[i] * part[i % WIDTH]);
        g[i] *= o.scale[ids[i]];
      }
    Floats mean{}, dot{};
    for (int64_t k = 0; o.renormalize && k < k_lanes; k += WIDTH)
      mean += load(g + k) * (load(dp + k) * part);
    for (int64_t k = 0; k < k_lanes; k += WIDTH) {
      const Floats p = load(dp + k), d = (load(g + k) - mean) * part;
      dot += d * p;
      store(dp + k, d);
      // What is left to multiply with: dx = s * (ds - <ds, s>), or s'(x) * ds.
      store(g + k, softmax ? p : slope(load(at + k), p, o.scoring));
    }
    if (!softmax) dot = Floats{};
    store(factors, -dot / sum);
    for (int64_t k = 0; k < k_lanes; k += WIDTH) {
      Floats both{};  // an expert that was chosen twice has both
      for (int64_t j = 0; j < k_lanes; j += WIDTH)
        both += load(ids + j) == load(ids + k) ? load(dp + j) : Floats{};
      store(at + k, load(g + k) * (both - dot));
    }

    for (int64_t lane = 0; lane < lanes; ++lane) {
      T* out = d_logits + (t + lane) * o.experts;
      if (softmax)
        write_scaled(x + lane * padded, factors[lane], o.experts, out);
      else
        std::memset((void*)out, 0, o.experts * sizeof(T));
      for (int64_t i = lane; i < k_lanes; i += WIDTH)
        if (ids[i] >= 0) out[ids[i]] = at[i];
    }
  }
}

// Rows of a token weighed and added up, in vectors. Included by native.cpp once per instruction
// set: no guard.

template <class T, class B>
INLINE Piece<T, B> piece_of(const Job<T, B>& job, int64_t number) {
  const int64_t t = number / job.pieces, begin = number % job.pieces * COLUMNS;
  const int64_t* terms_of = job.terms_of + t;
  return {job.terms + terms_of[0], terms_of[1] - terms_of[0], t, begin,
          std::min(COLUMNS, job.hidden - begin)};
}

// Adds to the sums of a piece what N assignments from `first` on say, in their order. Rows lie
// anywhere, which the machine does not foresee: those of the next piece are asked for meanwhile.
template <int N, bool BIASED, class T, class B>
INLINE void add(const Piece<T, B>& piece, const Piece<T, B>& next, int64_t first, float* sums) {
  const T *rows[N], *ahead[N];
  const B* biases[N];
  float weights[N];
  for (int j = 0; j < N; ++j) {
    const Term<T, B>& term = piece.terms[first + j];
    rows[j] = term.row + piece.begin, weights[j] = term.weight;
    biases[j] = BIASED ? term.bias + piece.begin : nullptr;
    ahead[j] = first + j < next.count ? next.terms[first + j].row + next.begin : rows[j];
  }
  int64_t i = 0;
  for (; i + WIDTH <= piece.n; i += WIDTH) {
    Floats sum = load(sums + i);
    for (int j = 0; j < N; ++j) {
      if (i * sizeof(T) % 64 == 0) __builtin_prefetch(ahead[j] + i, 0, 2);
      Floats said = load(rows[j] + i);
      if constexpr (BIASED) said += load(biases[j] + i);
      sum += weights[j] * said;
    }
    store(sums + i, sum);
  }
  for (; i < piece.n; ++i)
    for (int j = 0; j < N; ++j) {
      float said = rows[j][i];
      if constexpr (BIASED) said += static_cast<float>(biases[j][i]);
      sums[i] += weights[j] * said;
    }
}

template <bool BIASED, class T, class B>
INLINE void add_all(const Piece<T, B>& piece, const Piece<T, B>& next, float* sums) {
  int64_t i = 0;
  for (; i + 8 <= piece.count; i += 8) add<8, BIASED>(piece, next, i, sums);
  if (piece.count & 4) add<4, BIASED>(piece, next, i, sums), i += 4;
  if (piece.count & 2) add<2, BIASED>(piece, next, i, sums), i += 2;
  if (piece.count & 1) add<1, BIASED>(piece, next, i, sums);
}

template <class T>
INLINE void add_residual(const T* residual, int64_t n, float* sums) {
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) store(sums + i, load(sums + i) + load(residual + i));
  for (; i < n; ++i) sums[i] += static_cast<float>(residual[i]);
}

// Pieces first to last - 1.
template <class T, class B>
void finalize(const Job<T, B>& job, int64_t first, int64_t last) {
  alignas(64) float sums[COLUMNS];
  Piece<T, B> piece = piece_of(job, first);
  for (int64_t number = first; number < last; ++number) {
    const Piece<T, B> next = piece_of(job, std::min(number + 1, last - 1));
    std::fill_n(sums, piece.n, 0.0f);
    if (job.biased)
      add_all<true>(piece, next, sums);
    else
      add_all<false>(piece, next, sums);
    for (int r = 0; r < 2; ++r)
      if (job.residuals[r])
        add_residual(job.residuals[r] + piece.t * job.residual_row[r] + piece.begin, piece.n, sums);
    T* to = job.out + piece.t * job.out_row + piece.begin;
    int64_t i = 0;
    for (; i + WIDTH <= piece.n; i += WIDTH) store(to + i, load(sums + i));
    for (; i < piece.n; ++i) to[i] = sums[i];
    piece = next;
  }
}

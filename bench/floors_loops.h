// The two loops of the floor, for one thread's share. Compiled once per instruction set.

// Every byte of the logits is read and every byte of the outputs written, and nothing else is done.
template <class T>
float move_bytes(const T* logits, int64_t n, float* weights, int32_t* experts, int64_t outputs) {
  Floats seen[4] = {};
  int64_t i = 0;
  for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
    for (int j = 0; j < 4; ++j) seen[j] = maximum(seen[j], load(logits + i + j * WIDTH));
  for (; i + WIDTH <= n; i += WIDTH) seen[0] = maximum(seen[0], load(logits + i));
  for (i = 0; i + WIDTH <= outputs; i += WIDTH) {
    store(weights + i, seen[0]);
    store(experts + i, lane_numbers());
  }
  const Floats all = maximum(maximum(seen[0], seen[1]), maximum(seen[2], seen[3]));
  return all[0] + all[WIDTH - 1];
}

// As many keys as there are logits, from a block that stays in the first-level cache: the price of
// reading is the other loop's. Softmax: the exponentials and their sum. Otherwise sigmoid + bias.
template <class T>
float compute_keys(const T* block, int64_t size, int64_t n, bool softmax, const float* bias) {
  Floats total[4] = {};
  const int64_t step = 4 * WIDTH;
  for (int64_t done = 0, at = 0; done + step <= n; done += step, at += step) {
    if (at + step > size) at = 0;
    for (int j = 0; j < 4; ++j) {
      const Floats x = load(block + at + j * WIDTH);
      if (softmax)
        total[j] += exp_of_negative(x - splat(16.0f));
      else
        total[j] = maximum(total[j], sigmoid(x) + load(bias + j * WIDTH));
    }
  }
  const Floats all = (total[0] + total[1]) + (total[2] + total[3]);
  float sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += all[i];
  return sum;
}

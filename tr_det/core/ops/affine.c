/* Affine grids for CPUs, each function one pass over memory; see affine_compiled.py.
 *
 * Results are those of affine_plain.py to the bit: the same IEEE operations in the same order, so
 * the build forbids contraction and allows no reassociation. All arrays of x's shape are dense and
 * of one layout; NaN stays NaN, as in torch.
 *
 * A scale and a shift belong to x[i] by its channel, (i / inner) % channels.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* One binary for every machine that shares a cache folder; the loader picks the clone. */
#if defined(__x86_64__) && !defined(NO_CLONES)
#define EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_CPU
#endif

enum { CHUNK = 32768 }; /* elements given to a thread at a time: 128 KB of floats */

#ifdef _OPENMP
#define FOR_CHUNKS _Pragma("omp parallel for num_threads(threads) if(n > CHUNK && threads > 1)")
#define FOR_CHUNKS_SUM \
  _Pragma("omp parallel for num_threads(threads) if(n > CHUNK && threads > 1) reduction(+:total)")
int is_parallel(void) { return 1; }
#else
#define FOR_CHUNKS
#define FOR_CHUNKS_SUM
int is_parallel(void) { return 0; }
#endif

/* Affine.packed. t is within low..high after the clip, its gradient passes from first to last. */
typedef struct {
  float low, high, first, last, divisor, lead, unit, spread, slope, mul, plus, below, above, delta;
  int32_t base, low_code, high_code, fixed, sign, bent, clipped_only, offset;
} Affine;

/* Elements that share a scale or, where the channel changes with each element, all channels once. */
typedef struct {
  const float *scale, *shift;
  int64_t end;
  int each;
} Run;

static Run run_at(int64_t i, int64_t end, const float *scale, const float *shift,
                  int64_t channels, int64_t inner) {
  int each = inner == 1 && channels > 1;
  int64_t length = each ? channels : inner, stop = (i / length + 1) * length;
  int64_t channel = each ? i % channels : i / inner % channels;
  return (Run){scale + channel, shift ? shift + channel : 0, stop < end ? stop : end, each};
}

static inline float floored(float s) { return s < 1e-8f ? 1e-8f : s; }

/* Statements for every i < n, with s, z and step, which are hoisted where they are constant. */
#define FOR_ELEMENTS(...)                                                              \
  if (run.each && run.shift)                                                           \
    for (int32_t i = 0; i < n; i++) ELEMENT(run.scale[i], run.shift[i], __VA_ARGS__)   \
  else if (run.each)                                                                   \
    for (int32_t i = 0; i < n; i++) ELEMENT(run.scale[i], 0.0f, __VA_ARGS__)           \
  else {                                                                               \
    const float scale = *run.scale, shift = run.shift ? *run.shift : 0.0f;             \
    for (int32_t i = 0; i < n; i++) ELEMENT(scale, shift, __VA_ARGS__)                 \
  }
#define ELEMENT(SCALE, SHIFT, ...)                                   \
  {                                                                  \
    const float s = floored(SCALE), z = SHIFT, step = s / a.divisor; \
    (void)z, (void)step;                                             \
    __VA_ARGS__                                                      \
  }

static inline float clipped(float t, Affine a) {
  t = t < a.low ? a.low : t;
  return t > a.high ? a.high : t;
}

static inline float multiple(float x, float t, Affine a) {
  if (a.sign) return x < 0 ? a.below : x >= 0 ? a.above : x;
  return rintf(clipped(t, a)) * a.mul + a.plus;
}

EACH_CPU static void quantize_run(const float *restrict x, float *restrict out, int32_t n, Run run,
                                  Affine a) {
  FOR_ELEMENTS(
    float value = multiple(x[i], (x[i] - z) / step - a.lead, a) * (a.fixed ? a.unit : step);
    out[i] = value + (a.offset && run.shift ? z : -0.0f);
  )
}

/* Without products and without the factor of EWGS. */
EACH_CPU static void pass_run(const float *restrict grad, const float *restrict x,
                              float *restrict out, int32_t n, Run run, Affine a) {
  FOR_ELEMENTS(
    float t = (x[i] - z) / step - a.lead;
    float passed = (t < a.first) | (t > a.last) ? 0.0f : grad[i];
    out[i] = a.fixed ? passed / (s * a.spread) : passed * a.slope;
  )
}

static inline __attribute__((always_inline)) void gradient_by(
    int sign, const float *restrict grad, const float *restrict x, float *restrict out,
    float *restrict products, int32_t n, Run run, Affine a) {
  a.sign = sign;
  FOR_ELEMENTS(
    float g = grad[i], t = (x[i] - z) / step - a.lead, inside = clipped(t, a), m = multiple(x[i], t, a);
    float nearest = a.sign ? m : rintf(inside);
    float bend = (inside - nearest) * ((float)((g > 0) - (g < 0)) * a.delta) + 1.0f;
    int outside = (t < a.first) | (t > a.last);
    float bent = g * bend;
    float sloped = (t + a.lead) * a.slope;
    float bent_slope = sloped * bend;
    float passed = outside ? 0.0f : a.bent ? bent : g;
    float slope = outside ? 0.0f : a.clipped_only ? m : a.bent ? bent_slope : sloped;
    float over = passed / (s * a.spread);
    float times = passed * a.slope;
    float free = g * (m - slope);
    out[i] = a.fixed ? over : times;
    float fixed = out[i] * (x[i] - z);
    products[i] = a.fixed ? fixed : free;
  )
}

/* A constant sign makes the loop simple enough for compilers to use vectors. */
EACH_CPU static void gradient_run(const float *restrict grad, const float *restrict x,
                                  float *restrict out, float *restrict products, int32_t n, Run run,
                                  Affine a) {
  if (a.sign) gradient_by(1, grad, x, out, products, n, run, a);
  else gradient_by(0, grad, x, out, products, n, run, a);
}

/* Counts in 32 bits: the loop is then as wide as the floats. */
EACH_CPU static int32_t recode_run(const float *restrict x, uint8_t *restrict codes, int32_t n,
                                   Run run, Affine a) {
  int32_t changed = 0;
  if (a.sign)
    for (int32_t i = 0; i < n; i++) {
      uint8_t code = (uint8_t)(x[i] < 0 ? a.low_code : a.high_code);
      changed += code != codes[i];
      codes[i] = code;
    }
  else FOR_ELEMENTS(
    uint8_t code = (uint8_t)((int32_t)rintf(clipped((x[i] - z) / step - a.lead, a)) + a.base);
    changed += code != codes[i];
    codes[i] = code;
  )
  return changed;
}

/* A statement for each run of each chunk: elements i to i + length. */
#define FOR_RUNS(...)                                                            \
  for (int64_t start = 0; start < n; start += CHUNK) {                           \
    int64_t end = n - start < CHUNK ? n : start + CHUNK;                         \
    for (int64_t i = start; i < end;) {                                          \
      Run run = run_at(i, end, scale, shift, channels, inner);                   \
      int32_t length = (int32_t)(run.end - i);                                   \
      __VA_ARGS__;                                                               \
      i = run.end;                                                               \
    }                                                                            \
  }

/* out = the quantized values of x. */
void quantize(const float *x, float *out, const float *scale, const float *shift, int64_t n,
              int64_t channels, int64_t inner, const Affine *a, int threads) {
  FOR_CHUNKS FOR_RUNS(quantize_run(x + i, out + i, length, run, *a))
}

/* out = dL/dx; products, if not NULL, get the terms of dL/dscale (affine_plain.py). */
void gradient(const float *grad, const float *x, float *out, float *products, const float *scale,
              const float *shift, int64_t n, int64_t channels, int64_t inner, const Affine *a,
              int threads) {
  FOR_CHUNKS FOR_RUNS(
      if (products) gradient_run(grad + i, x + i, out + i, products + i, length, run, *a);
      else pass_run(grad + i, x + i, out + i, length, run, *a))
}

/* Overwrites codes (int8 or uint8) with those of x; returns how many changed. */
int64_t recode(const float *x, uint8_t *codes, const float *scale, const float *shift, int64_t n,
               int64_t channels, int64_t inner, const Affine *a, int threads) {
  int64_t total = 0;
  FOR_CHUNKS_SUM FOR_RUNS(total += recode_run(x + i, codes + i, length, run, *a))
  return total;
}

/* A hash of up to 8 elements, evenly spaced. */
uint64_t fingerprint(const float *x, int64_t n) {
  uint64_t hash = 1469598103934665603u;
  int64_t step = n / 8 + 1; /* few: each is a cache miss */
  for (int64_t i = 0; i < n; i += step) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

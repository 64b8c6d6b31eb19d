/* Batch norm and a clipped activation of maps in channels_last, forward and backward. Sums are float32, of blocks of
   rows that stay in the first cache; blocks are joined as by Chan et al. (1979). A row is a pixel with its channels, or
   as many pixels as make it long enough: then a channel has several columns. gcc and clang make vectors of the
   innermost loops; conditions are written as choices for that reason. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float f32;
typedef uint16_t bf16;

static inline float load_f32(f32 v) { return v; }
static inline f32 store_f32(float v) { return v; }
static inline float load_bf16(bf16 v) {
    union { uint32_t bits; float value; } u = {(uint32_t)v << 16};
    return u.value;
}
static inline bf16 store_bf16(float v) { /* to the nearest, ties to even; NaN stays NaN */
    union { float value; uint32_t bits; } u = {v};
    uint32_t nearest = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return v == v ? nearest : 0x7fc0;
}

static size_t block_of(size_t columns, size_t rows_left) {
    size_t rows = columns < 512 ? 4096 / columns : 8;
    return rows < rows_left ? rows : rows_left;
}

static size_t pixels_of_row(size_t pixels, size_t channels) {
    size_t count = channels < 128 ? 128 / channels : 1;
    while (pixels % count) count--;
    return count;
}

static void repeat(float *row, size_t channels, size_t columns) {
    for (size_t c = channels; c < columns; c++) row[c] = row[c - channels];
}

static void fold(float *row, size_t channels, size_t columns) {
    for (size_t c = channels; c < columns; c++) row[c % channels] += row[c];
}

/* Both need `work` of 4 * max(channels, 128) numbers. */
#define KERNELS(T)                                                                                                 \
/* out = clip((x - mean) / sqrt(var + eps) * weight + bias) by the mean and variance of x. */                      \
void forward_##T(const T *restrict x, size_t pixels, size_t channels, const float *restrict weight,                \
                 const float *restrict bias, float eps, float low, float high, T *restrict out,                    \
                 float *restrict mean, float *restrict var, float *restrict work) {                                \
    size_t together = pixels_of_row(pixels, channels), columns = channels * together, rows = pixels / together;    \
    float *restrict means = work, *restrict squares = work + columns;                                              \
    float *restrict centre = work + 2 * columns, *restrict around = work + 3 * columns;                            \
    memset(means, 0, 2 * columns * sizeof(float));                                                                 \
    for (size_t r = 0, n; r < rows; r += n) {                                                                      \
        n = block_of(columns, rows - r);                                                                           \
        memset(centre, 0, 2 * columns * sizeof(float));                                                            \
        for (size_t k = r; k < r + n; k++)                                                                         \
            for (size_t c = 0; c < columns; c++) centre[c] += load_##T(x[k * columns + c]);                        \
        for (size_t c = 0; c < columns; c++) centre[c] /= n;                                                       \
        for (size_t k = r; k < r + n; k++)                                                                         \
            for (size_t c = 0; c < columns; c++) {                                                                 \
                float d = load_##T(x[k * columns + c]) - centre[c];                                                \
                around[c] += d * d;                                                                                \
            }                                                                                                      \
        float share = (float)n / (r + n);                                                                          \
        for (size_t c = 0; c < columns; c++) {                                                                     \
            float d = centre[c] - means[c];                                                                        \
            means[c] += d * share;                                                                                 \
            squares[c] += around[c] + d * d * share * r;                                                           \
        }                                                                                                          \
    }                                                                                                              \
    for (size_t c = 0; c < channels; c++) {                                                                        \
        float sum = 0, total = 0;                                                                                  \
        for (size_t i = c; i < columns; i += channels) sum += means[i];                                            \
        mean[c] = sum / together;                                                                                  \
        for (size_t i = c; i < columns; i += channels) {                                                           \
            float d = means[i] - mean[c];                                                                          \
            total += squares[i] + rows * d * d;                                                                    \
        }                                                                                                          \
        var[c] = total / pixels;                                                                                   \
    }                                                                                                              \
    float *restrict scale = work, *restrict shift = work + columns;                                                \
    for (size_t c = 0; c < channels; c++) {                                                                        \
        scale[c] = weight[c] / sqrtf(var[c] + eps);                                                                \
        shift[c] = bias[c] - mean[c] * scale[c];                                                                   \
    }                                                                                                              \
    repeat(scale, channels, columns);                                                                              \
    repeat(shift, channels, columns);                                                                              \
    for (size_t r = 0; r < rows; r++)                                                                              \
        for (size_t c = 0; c < columns; c++) {                                                                     \
            float v = load_##T(x[r * columns + c]) * scale[c] + shift[c];                                          \
            v = v < low ? low : v;                                                                                 \
            v = v > high ? high : v;                                                                               \
            out[r * columns + c] = store_##T(v);                                                                   \
        }                                                                                                          \
}                                                                                                                  \
/* The gradients of x, weight and bias; what was clipped passes none on. */                                        \
void backward_##T(const T *restrict gradient, const T *restrict x, const T *restrict out, size_t pixels,           \
                  size_t channels, const float *restrict weight, const float *restrict mean,                       \
                  const float *restrict var, float eps, float low, float high, T *restrict of_x,                   \
                  float *restrict of_weight, float *restrict of_bias, float *restrict work) {                      \
    size_t together = pixels_of_row(pixels, channels), columns = channels * together, rows = pixels / together;    \
    float *restrict centre = work, *restrict sums = work + columns, *restrict dots = work + 2 * columns;           \
    memcpy(centre, mean, channels * sizeof(float));                                                                \
    repeat(centre, channels, columns);                                                                             \
    memset(of_weight, 0, channels * sizeof(float));                                                                \
    memset(of_bias, 0, channels * sizeof(float));                                                                  \
    for (size_t r = 0, n; r < rows; r += n) {                                                                      \
        n = block_of(columns, rows - r);                                                                           \
        memset(sums, 0, 2 * columns * sizeof(float));                                                              \
        for (size_t k = r; k < r + n; k++)                                                                         \
            for (size_t c = 0; c < columns; c++) {                                                                 \
                size_t i = k * columns + c;                                                                        \
                float y = load_##T(out[i]), g = load_##T(gradient[i]);                                             \
                g = (y > low) & (y < high) ? g : 0.0f;                                                             \
                sums[c] += g;                                                                                      \
                dots[c] += g * (load_##T(x[i]) - centre[c]);                                                       \
            }                                                                                                      \
        fold(sums, channels, columns);                                                                             \
        fold(dots, channels, columns);                                                                             \
        for (size_t c = 0; c < channels; c++) of_bias[c] += sums[c], of_weight[c] += dots[c];                      \
    }                                                                                                              \
    float *restrict a = work + columns, *restrict b = work + 2 * columns, *restrict constant = work + 3 * columns; \
    for (size_t c = 0; c < channels; c++) {                                                                        \
        float inverse = 1 / sqrtf(var[c] + eps);                                                                   \
        of_weight[c] *= inverse;                                                                                   \
        a[c] = weight[c] * inverse;                                                                                \
        b[c] = -a[c] * inverse * of_weight[c] / pixels;                                                            \
        constant[c] = -a[c] * of_bias[c] / pixels;                                                                 \
    }                                                                                                              \
    repeat(a, channels, columns);                                                                                  \
    repeat(b, channels, columns);                                                                                  \
    repeat(constant, channels, columns);                                                                           \
    for (size_t r = 0; r < rows; r++)                                                                              \
        for (size_t c = 0; c < columns; c++) {                                                                     \
            size_t i = r * columns + c;                                                                            \
            float y = load_##T(out[i]), g = load_##T(gradient[i]);                                                 \
            g = (y > low) & (y < high) ? g : 0.0f;                                                                 \
            of_x[i] = store_##T(g * a[c] + (load_##T(x[i]) - centre[c]) * b[c] + constant[c]);                     \
        }                                                                                                          \
}

KERNELS(f32)
KERNELS(bf16)

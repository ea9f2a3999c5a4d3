// Instance normalisation, ReLU and 2×2 average pooling in one, forward and backward.
//
// Images and their gradients are bfloat16 in memory order N×H×W×C, H and W even; statistics and
// sums are float32. A task is some channels of one image, small enough to stay in a core's own
// cache from the pass over it that takes the statistics to the one that uses them. Every number has
// one order of summation, however many threads there are.
//
// Loops over vectors are unrolled: only then do the compilers keep sums in registers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
// As many as have their sums in registers: the more, the longer the runs memory is read in.
constexpr int64_t FORWARD_VECTORS = 8;
constexpr int64_t BACKWARD_VECTORS = 4;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

// To bfloat16: to nearest, ties to even. A NaN's last bits might carry it over to infinity.
#ifdef __AVX512BF16__
auto round(Floats value) { return _mm512_cvtneps_pbh((__m512)value); }
#else
auto round(Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(value == value ? rounded : Words{} + 0x7fc0, Halves);
}
#endif

struct Shape {
    int64_t images, height, width, channels;
};

// Consecutive channels of one image: N full vectors, or one whose first `count` lanes are used.
template <int N>
struct Slice {
    int64_t channels, count;

    Floats load(const uint16_t* from, int vector) const {
        Halves halves = {};
        std::memcpy(&halves, from + vector * LANES, bytes(sizeof(uint16_t)));
        return (Floats)(__builtin_convertvector(halves, Words) << 16);
    }

    void store(uint16_t* to, int vector, Floats value) const {
        const auto rounded = round(value);
        std::memcpy(to + vector * LANES, &rounded, bytes(sizeof(uint16_t)));
    }

    Floats load(const float* from, int vector) const {
        Floats value = {};
        std::memcpy(&value, from + vector * LANES, bytes(sizeof(float)));
        return value;
    }

    void store(float* to, int vector, Floats value) const {
        std::memcpy(to + vector * LANES, &value, bytes(sizeof(float)));
    }

    size_t bytes(size_t each) const { return each * (N > 1 ? LANES : count); }
};

// `kept`, but zero where `value` is zero or less. NaN is neither, as in PyTorch's ReLU.
Floats where_positive(Floats value, Floats kept) { return value <= 0 ? Floats{} : kept; }

template <int N>
void forward(Slice<N> slice, Shape shape, const uint16_t* x, const float* weight,
             const float* bias, float eps, uint16_t* y, float* mean_out, float* rstd_out) {
    const int64_t places = shape.height * shape.width, stride = slice.channels;
    // Sums of the distance to the first place cancel no further than any one place is away.
    Floats first[N], sum[N] = {}, square[N] = {}, mean[N], scale[N], shift[N];
    for (int v = 0; v < N; ++v) first[v] = slice.load(x, v);
    // Row by row: one long sum would round away the last bits of what is added late.
    for (int64_t row = 0; row < shape.height; ++row) {
        Floats row_sum[N] = {}, row_square[N] = {};
        for (int64_t column = 0; column < shape.width; ++column)
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
                const uint16_t* const at = x + (row * shape.width + column) * stride;
                const Floats distance = slice.load(at, v) - first[v];
                row_sum[v] += distance;
                row_square[v] += distance * distance;
            }
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
            sum[v] += row_sum[v];
            square[v] += row_square[v];
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
        const Floats from_first = sum[v] / (float)places;
        mean[v] = first[v] + from_first;
        Floats variance = square[v] / (float)places - from_first * from_first;
        variance = where_positive(variance, variance);
        Floats rstd;
        for (int lane = 0; lane < LANES; ++lane) rstd[lane] = 1 / std::sqrt(variance[lane] + eps);
        slice.store(mean_out, v, mean[v]);
        slice.store(rstd_out, v, rstd);
        scale[v] = slice.load(weight, v) * rstd;
        shift[v] = slice.load(bias, v);
    }
    for (int64_t row = 0; row < shape.height; row += 2)
        for (int64_t column = 0; column < shape.width; column += 2) {
            const uint16_t* const from = x + (row * shape.width + column) * stride;
            const int64_t places_on[] = {0, 1, shape.width, shape.width + 1};
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
                Floats pooled = {};
                for (const int64_t place : places_on) {
                    const Floats centred = slice.load(from + place * stride, v) - mean[v];
                    const Floats value = centred * scale[v] + shift[v];
                    pooled += where_positive(value, value);
                }
                slice.store(y, v, pooled * 0.25f);
            }
            y += stride;
        }
}

template <int N>
void backward(Slice<N> slice, Shape shape, const uint16_t* dy, const uint16_t* x,
              const float* weight, const float* bias, const float* mean_in, const float* rstd_in,
              uint16_t* dx, float* dweight, float* dbias) {
    const int64_t stride = slice.channels;
    const float places = (float)(shape.height * shape.width);
    Floats mean[N], scale[N], shift[N], sum[N] = {}, product[N] = {};
    for (int v = 0; v < N; ++v) {
        mean[v] = slice.load(mean_in, v);
        scale[v] = slice.load(weight, v) * slice.load(rstd_in, v);
        shift[v] = slice.load(bias, v);
    }
    const int64_t places_on[] = {0, 1, shape.width, shape.width + 1};
    const uint16_t* pooled = dy;
    for (int64_t row = 0; row < shape.height; row += 2)
        for (int64_t column = 0; column < shape.width; column += 2, pooled += stride) {
            const uint16_t* const from = x + (row * shape.width + column) * stride;
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
                const Floats share = slice.load(pooled, v) * 0.25f;
                for (const int64_t place : places_on) {
                    const Floats centred = slice.load(from + place * stride, v) - mean[v];
                    const Floats passed = where_positive(centred * scale[v] + shift[v], share);
                    sum[v] += passed;
                    product[v] += passed * centred;
                }
            }
        }
    for (int v = 0; v < N; ++v) {
        const Floats rstd = slice.load(rstd_in, v);
        slice.store(dbias, v, sum[v]);
        slice.store(dweight, v, product[v] * rstd);
        sum[v] *= -scale[v] / places;
        product[v] *= -scale[v] * rstd * rstd / places;
    }
    pooled = dy;
    for (int64_t row = 0; row < shape.height; row += 2)
        for (int64_t column = 0; column < shape.width; column += 2, pooled += stride) {
            const int64_t start = (row * shape.width + column) * stride;
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
                const Floats share = slice.load(pooled, v) * 0.25f;
                for (const int64_t place : places_on) {
                    const int64_t at = start + place * stride;
                    const Floats centred = slice.load(x + at, v) - mean[v];
                    const Floats passed = where_positive(centred * scale[v] + shift[v], share);
                    slice.store(dx + at, v, passed * scale[v] + centred * product[v] + sum[v]);
                }
            }
        }
}

// Calls `task(slice, image, channel)` for all channels of all images, in slices of N vectors and,
// where fewer channels are left, of one.
template <int64_t N, typename Task>
void for_all(Shape shape, int threads, Task task) {
    constexpr int64_t wide = N * LANES;
    const int64_t slices = (shape.channels + wide - 1) / wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t number = 0; number < shape.images * slices; ++number) {
        const int64_t image = number / slices;
        int64_t channel = number % slices * wide;
        const int64_t end = std::min(channel + wide, shape.channels);
        if (channel + wide == end)
            task(Slice<N>{shape.channels, LANES}, image, channel);
        else
            for (; channel < end; channel += LANES)
                task(Slice<1>{shape.channels, std::min(LANES, end - channel)}, image, channel);
    }
}

}  // namespace

extern "C" void norm_pool_forward(int64_t images, int64_t height, int64_t width, int64_t channels,
                                  int threads, const uint16_t* x, const float* weight,
                                  const float* bias, float eps, uint16_t* y, float* mean,
                                  float* rstd) {
    const Shape shape{images, height, width, channels};
    for_all<FORWARD_VECTORS>(shape, threads, [&](auto slice, int64_t image, int64_t channel) {
        const int64_t of_image = image * channels + channel;
        forward(slice, shape, x + image * height * width * channels + channel, weight + channel,
                bias + channel, eps, y + image * height * width / 4 * channels + channel,
                mean + of_image, rstd + of_image);
    });
}

// `dweight` and `dbias` are one row an image, still to be added up.
extern "C" void norm_pool_backward(int64_t images, int64_t height, int64_t width,
                                   int64_t channels, int threads, const uint16_t* dy,
                                   const uint16_t* x, const float* weight, const float* bias,
                                   const float* mean, const float* rstd, uint16_t* dx,
                                   float* dweight, float* dbias) {
    const Shape shape{images, height, width, channels};
    for_all<BACKWARD_VECTORS>(shape, threads, [&](auto slice, int64_t image, int64_t channel) {
        const int64_t of_image = image * channels + channel;
        const int64_t start = image * height * width * channels + channel;
        backward(slice, shape, dy + image * height * width / 4 * channels + channel, x + start,
                 weight + channel, bias + channel, mean + of_image, rstd + of_image, dx + start,
                 dweight + of_image, dbias + of_image);
    });
}

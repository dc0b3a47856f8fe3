// SPDX-License-Identifier: Apache-2.0
#include "config/scalars.h"

#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>

namespace conclave::config {
namespace {

using testing::HasSubstr;

int64_t integer(std::string_view text) {
  const auto parsed = parse_int(text);
  return std::holds_alternative<int64_t>(parsed) ? std::get<int64_t>(parsed) : -999;
}
template <typename T>
std::string reason(const Parsed<T>& parsed) {
  return std::holds_alternative<std::string>(parsed) ? std::get<std::string>(parsed) : "(accepted)";
}

TEST(Scalars, ReadIntegersWithUnitsExactly) {
  EXPECT_EQ(integer("0"), 0);
  EXPECT_EQ(integer("-7"), -7);
  EXPECT_EQ(integer("+7"), 7);
  EXPECT_EQ(integer("1e9"), 1'000'000'000);
  EXPECT_EQ(integer("2B"), 2'000'000'000);
  EXPECT_EQ(integer("2.5B"), 2'500'000'000);
  EXPECT_EQ(integer("512k"), 512'000);
  EXPECT_EQ(integer("4Ki"), 4096);
  EXPECT_EQ(integer("0.5Ki"), 512);
  EXPECT_EQ(integer("1.5Mi"), 1'572'864);
  EXPECT_EQ(integer("12.50e1"), 125);
  EXPECT_EQ(integer("100e-2"), 1);
  EXPECT_EQ(integer("9223372036854775807"), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(integer("7Ti"), int64_t{7} << 40);
}

TEST(Scalars, RefuseIntegersThatAreNone) {
  EXPECT_THAT(reason(parse_int("1e-3")), HasSubstr("not a whole number"));
  EXPECT_THAT(reason(parse_int("1.5")), HasSubstr("not a whole number"));
  EXPECT_THAT(reason(parse_int("0.3Ki")), HasSubstr("not a whole number"));
  EXPECT_THAT(reason(parse_int("1.00000000000000000000000000001")), HasSubstr("not a whole number"));
  EXPECT_THAT(reason(parse_int("1e-999999999999999999999")), HasSubstr("not a whole number"));
  EXPECT_THAT(reason(parse_int("9223372036854775808")), HasSubstr("too large"));
  EXPECT_THAT(reason(parse_int("1e19")), HasSubstr("too large"));
  EXPECT_THAT(reason(parse_int("9Ti")), HasSubstr("(accepted)"));
  EXPECT_THAT(reason(parse_int("9000000000T")), HasSubstr("too large"));
  EXPECT_THAT(reason(parse_int("1e99999999999999999999")), HasSubstr("too large"));
  EXPECT_THAT(reason(parse_int("010")), HasSubstr("octal"));
  for (const char* text : {"", "k", "0x10", "1_000", "1 k", "ten", "--1", "1KB", "inf", "1e", "."}) {
    EXPECT_THAT(reason(parse_int(text)), HasSubstr("expected a whole number")) << text;
  }
}

TEST(Scalars, ReadNumbersThatAreFinite) {
  EXPECT_EQ(std::get<double>(parse_double("3e-4")), 3e-4);
  EXPECT_EQ(std::get<double>(parse_double("1")), 1.0);
  EXPECT_EQ(std::get<double>(parse_double("+.5")), 0.5);
  EXPECT_EQ(std::get<double>(parse_double("-2.5E+3")), -2500.0);
  for (const char* text : {".inf", "-inf", "nan", ".NaN", "infinity"}) {
    EXPECT_THAT(reason(parse_double(text)), HasSubstr("finite")) << text;
  }
  EXPECT_THAT(reason(parse_double("1e999")), HasSubstr("range"));
  for (const char* text : {"", "abc", "1,5", "0x1p3", "1e", "1.2.3", "--1"}) {
    EXPECT_THAT(reason(parse_double(text)), HasSubstr("expected a number")) << text;
  }
}

TEST(Scalars, TellWhatToWriteForYaml11Booleans) {
  EXPECT_TRUE(std::get<bool>(parse_bool("true")));
  EXPECT_FALSE(std::get<bool>(parse_bool("False")));
  EXPECT_THAT(reason(parse_bool("yes")), HasSubstr("write true"));
  EXPECT_THAT(reason(parse_bool("off")), HasSubstr("write false"));
  EXPECT_THAT(reason(parse_bool("0")), HasSubstr("write false"));
  EXPECT_THAT(reason(parse_bool("maybe")), HasSubstr("expected true or false"));
}

TEST(Scalars, ReadTimesSharesAndSizes) {
  EXPECT_EQ(std::get<Duration>(parse_duration("90")).seconds, 90);
  EXPECT_EQ(std::get<Duration>(parse_duration("30m")).seconds, 1800);
  EXPECT_EQ(std::get<Duration>(parse_duration("1h30m")).seconds, 5400);
  EXPECT_EQ(std::get<Duration>(parse_duration("0.5d")).seconds, 43200);
  EXPECT_THAT(reason(parse_duration("1h30")), HasSubstr("expected a time"));
  EXPECT_THAT(reason(parse_duration("5 minutes")), HasSubstr("expected a time"));
  EXPECT_EQ(std::get<StepCount>(parse_steps("2k")).of(0), 2000);
  EXPECT_EQ(std::get<StepCount>(parse_steps("1%")).of(1000), 10);
  EXPECT_THAT(reason(parse_steps("101%")), HasSubstr("between 0% and 100%"));
  EXPECT_THAT(reason(parse_steps("few")), HasSubstr("share of train.steps"));
  EXPECT_EQ(std::get<Bytes>(parse_bytes("64GiB")).bytes, int64_t{64} << 30);
  EXPECT_EQ(std::get<Bytes>(parse_bytes("1.5kB")).bytes, 1500);
  EXPECT_EQ(std::get<Bytes>(parse_bytes("10")).bytes, 10);
  EXPECT_THAT(reason(parse_bytes("64 GiB")), HasSubstr("expected a size"));
}

RC_GTEST_PROP(Scalars, IntegersReadBack, (int64_t value)) {
  RC_PRE(value != std::numeric_limits<int64_t>::min());
  RC_ASSERT(integer(format_value(value)) == value);
}

RC_GTEST_PROP(Scalars, UnitsMultiply, ()) {
  const auto count = *rc::gen::inRange<int64_t>(-1'000'000, 1'000'000);
  RC_ASSERT(integer(format_value(count) + "k") == count * 1000);
  RC_ASSERT(integer(format_value(count) + "Ki") == count * 1024);
  RC_ASSERT(integer(format_value(count) + "Gi") == count << 30);
}

RC_GTEST_PROP(Scalars, NumbersReadBackBitForBit, (uint64_t bits)) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  RC_PRE(std::isfinite(value));
  const double back = std::get<double>(parse_double(format_value(value)));
  RC_ASSERT(std::memcmp(&back, &value, sizeof value) == 0);
}

RC_GTEST_PROP(Scalars, TimesReadBack, ()) {
  const double seconds = *rc::gen::inRange<int64_t>(0, 10'000'000) / *rc::gen::element(1.0, 8.0, 10.0);
  RC_ASSERT(std::get<Duration>(parse_duration(format_value(Duration{seconds}))).seconds == seconds);
}

RC_GTEST_PROP(Scalars, SharesReadBack, ()) {
  const std::string written = format_value(*rc::gen::inRange<int64_t>(0, 1'000'000) / 10'000.0);
  const StepCount share = std::get<StepCount>(parse_steps(written + "%"));
  RC_ASSERT(*std::get<StepCount>(parse_steps(format_value(share))).share == *share.share);
}

RC_GTEST_PROP(Scalars, SizesReadBack, ()) {
  const Bytes size{*rc::gen::inRange<int64_t>(0, 5000) << *rc::gen::inRange(0, 45)};
  RC_ASSERT(std::get<Bytes>(parse_bytes(format_value(size))).bytes == size.bytes);
}

RC_GTEST_PROP(Scalars, AnyTextIsReadOrRefusedWithAReason, (std::string text)) {
  RC_ASSERT(!reason(parse_int(text)).empty());
  RC_ASSERT(!reason(parse_double(text)).empty());
  RC_ASSERT(!reason(parse_duration(text)).empty());
  RC_ASSERT(!reason(parse_steps(text)).empty());
}

}  // namespace
}  // namespace conclave::config

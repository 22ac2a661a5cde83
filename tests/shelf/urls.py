from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path
from library.urls import urlpatterns as library_patterns
from wagtail import urls as wagtail_urls

urlpatterns = [
    *library_patterns[:-1],
    *i18n_patterns(path("", include(wagtail_urls)), prefix_default_language=False),
]

"""Pages of Wagtail's tree are ISR pages, and whatever changes them renews them.

``INSTALLED_APPS += ["wsgi_isr.django", "wsgi_isr.django.wagtail"]`` is all there is to do. What a
template tag of the site's own fetches is declared with ``{% isr_tag obj %}``, or with
``ISR["WAGTAIL_SITE_TAGS"]``.
"""
